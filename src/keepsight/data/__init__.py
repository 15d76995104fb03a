"""Images with labels: `load` reads, `splits` splits, `streams` orders, `transforms` prepares them."""

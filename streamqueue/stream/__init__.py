"""Change streams: what their errors mean, and who reads them."""

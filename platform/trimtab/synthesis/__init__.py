"""C²-SYN and CST preference data: plan → generations → ranked groups (arXiv 2407.16637, 2404.00495)."""

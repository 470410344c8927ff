"""DPO on ranked groups: the loss of all pairs from one token trie a group, on Ray Train and DeepSpeed."""

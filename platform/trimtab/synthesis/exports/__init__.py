"""What ``trimtab export`` is made of: pairs as Arrow columns, a survey of the groups, the card, the Hub."""

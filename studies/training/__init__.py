"""How `vitcop-tiny` is made: a small LLaVA trained from scratch on generated pictures with known answers."""

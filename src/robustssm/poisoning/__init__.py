"""Clean-label poisoning of the implicit bias of SSMs: experiments, controls, attacks, defences."""

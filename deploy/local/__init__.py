"""``podwire local``: every real part on one machine, supervised until Ctrl-C."""

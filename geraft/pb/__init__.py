"""Generated from proto/ by `make proto`; never edited by hand. A test regenerates it and compares."""

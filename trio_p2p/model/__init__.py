"""Pure values: clock, versions, revisions, bodies, conflicts. No I/O, no clock of its own."""

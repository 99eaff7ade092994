"""How sure a figure is: intervals and tests of paired outcomes, by cluster, held out. Pure functions of arrays."""

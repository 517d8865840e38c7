"""The paper's tables, rebuilt: what each cell needs, how it is made, and the tables themselves."""

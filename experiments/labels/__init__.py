"""How far labels can be trusted: people's votes, what models say of them, tables."""

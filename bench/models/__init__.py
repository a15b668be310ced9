"""`undiffuse bench models`: what models/ claims, on laws that are known."""

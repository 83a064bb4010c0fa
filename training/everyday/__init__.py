"""Data and recipe of everyday things: named drawings, clothes photographs, and what names them."""

"""Teacher and student: loaded, wrapped, matched layer by layer, packed, timed."""

"""The gate in front of a served model: which routes and fields pass, and which system prompt a request gets."""

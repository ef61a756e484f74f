"""Jobs that write a directory part by part: one at a time, resumable, on one machine or several."""

"""Images with objects: a box and a class for each, and a mask if there is one."""

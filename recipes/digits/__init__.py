"""Handwritten digits: a data set of one's own, in the forms that anybody's would have."""

"""Rejector methods of the literature on the same cached costs, through the same evaluation. See docs/methods.md.

Rules stand in the tables ``RULES`` of :mod:`.on_agents`, :mod:`.factors` and :mod:`.one_stage`, and in
``WITHOUT_NETWORK`` of :mod:`.without_network`.
"""

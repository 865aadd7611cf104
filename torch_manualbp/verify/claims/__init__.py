"""The claims, each written once: a function of a :class:`~torch_manualbp.verify.trial.Trial`.

A rule on a sample, a layer and a user's target are held to them alike; which of them, and under what names, say
``torch_manualbp.verify.contract``, ``.surroundings`` and ``.checks``.
"""

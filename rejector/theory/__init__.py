"""The paper's theory as diagnostics: what keeps a rejector from the best one there could be.

:mod:`conditional_risk`  the least a surrogate can cost on a sample, and where (Theorem 4.6)
:mod:`consistency`       from excess surrogate risk to excess deferral loss (Theorem 4.4)
:mod:`bayes`             expected costs given the features, and the Bayes rejector (Lemma 4.2)
:mod:`refits`            other members of the rejector's class: fitted longer, or on half the rows
:mod:`encoder_split`     the model's heads, its representation, the price of sharing it (section 4.3)
:mod:`learning_bound`    the learning bound and its terms (Theorem 4.13)
:mod:`subject`           a run with everything that its diagnosis is taken from
:mod:`parts`             what the figures say, a module a part
:mod:`section`           all of it for one run
"""

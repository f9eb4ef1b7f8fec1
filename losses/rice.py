"""AT as Rice, Wong and Kolter (ICML 2020) train it, to be stopped before robust overfitting."""

from losses.madry import AT


class Rice(AT):
    """CE(f(x'), y); the attack runs in train mode, and passes on x' before and on x after the update only move the
    BatchNorm statistics.

    Early stopping is ``best.pt``, chosen with ``--val-size`` on held-out images (their ``--val``); without it on the
    test set, as their table.
    """

    tag = "rice"
    attack_mode = "train"
    passes = ("adv.no_grad", "adv")  # the first chooses among restarts, of which there is one
    after_update = ("nat.no_grad",)  # for the program's log
    source = "Rice, Wong and Kolter, Overfitting in adversarially robust deep learning, ICML 2020"

"""Fast adversarial training: FGSM-RS (Wong, Rice and Kolter, ICLR 2020), and FGSM without its random start."""

from losses.madry import AT


class FGSMRS(AT):
    """CE(f(x'), y) from a uniform start, the student in train mode. One step needs ``--num-steps 1 --step-ratio 1.25``.

    The settings of the paper are ``--num-steps 1 --step-size 10/255 --epsilon 8/255``. Watch for catastrophic
    overfitting with ``--stop-overfitting``.
    """

    tag = "fgsm-rs"
    attack_mode = "train"
    source = "Wong, Rice and Kolter, Fast is better than free: Revisiting adversarial training, ICLR 2020"


class FGSM(FGSMRS):
    """CE(f(x'), y); the step starts at x itself, and catastrophic overfitting is the rule."""

    tag = "fgsm"
    start = "clean"
    source = "Goodfellow, Shlens and Szegedy, Explaining and Harnessing Adversarial Examples, ICLR 2015"

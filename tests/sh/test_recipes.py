"""The recipe scripts in sh/: names, titles, and the settings of the published recipes."""

import re

import pytest

from results.records import Records, display

RECORDS = Records()
RECIPES = RECORDS.recipes
PUBLISHED_ENTRY_POINT = "train_lbgat0_cifar100.sh"
VARY = {"--mark", "--dataset"}  # within a family, besides what its test names


def flags(name: str) -> dict[str, str]:
    """The flags that a script passes to train_lbgat.py, in its own spelling."""
    found, words = {}, RECIPES[name].flags
    for word in words:
        if word.startswith("--"):
            found[word], last = "", word  # a switch, unless a value follows
        else:
            assert found[last] == ""
            found[last] = word
    return found


def common(names: list[str], *vary: str) -> dict[str, str]:
    """The flags that all the scripts share, after making sure that they differ in nothing but those named."""
    kept = [{k: v for k, v in flags(name).items() if k not in VARY | set(vary)} for name in names]
    assert len(names) > 1 and all(other == kept[0] for other in kept), names
    return kept[0]


def named(pattern: str) -> list[str]:
    return [name for name in RECIPES if re.fullmatch(pattern, name)]


@pytest.mark.parametrize("name", RECIPES)
def test_script_is_named_after_its_mark(name: str):
    script = RECIPES[name].script.name
    if script == PUBLISHED_ENTRY_POINT:
        assert name == "lbgat0-cifar100-wrn34-10"
    else:
        assert script == f"train_{name.replace('-', '_')}.sh"


@pytest.mark.parametrize("name", RECIPES)
def test_mark_and_title_name_data_set_network_and_kind(name: str):
    recipe, title = RECIPES[name], RECIPES[name].script.read_text().splitlines()[1]
    config = recipe.config
    assert name.endswith(f"-{config.dataset}-{config.student.replace('wrn-', 'wrn')}")
    assert f": {display(config.dataset)}, {display(config.student)}; " in title
    assert ("RECONSTRUCTION" in title) == ("-reconstruction-" in name)
    assert (" in 30 epochs" in recipe.method) == ("-short-" in name) == (config.epochs == 30)


def test_every_published_method_of_ours_has_a_script():
    ours = re.compile(
        r"(LBGAT[06]|LBGAT-AWP\*?|TRADES6|TRADES-AWP|AT|AT-AWP|IKL-AT( \+ AutoAugment)?|Free-AT|FAT-Zhang2020|DAJAT|"
        r"FGSM-RS|HAT|YOPO-Zhang2019a|Rice2020|Sitawarin2020|Chen2020b?|Gowal2020)"
    )
    rows = [row for row in RECORDS.published if ours.fullmatch(row["method"]) and not row["extra_data"]]
    rows = [row for row in rows if (row["method"], row["architecture"]) != ("Gowal2020", "WRN-34-20")]  # no recipe
    assert len(rows) == 33
    assert all(sum(recipe.publishes(row) for recipe in RECIPES.values()) == 1 for row in rows)


def test_no_script_is_without_a_family():
    in_families = {name for pattern in FAMILIES for name in named(pattern)}
    assert in_families == RECIPES.keys()


ATTACK = {"--norm": "linf", "--epsilon": "0.031", "--step-size": "0.007", "--num-steps": "10"}
SGD = {"--batch-size": "128", "--momentum": "0.9"}
LINF = {"--norm": "linf", "--epsilon": "8/255"}
PGD10 = {"--step-size": "2/255", "--num-steps": "10"}
STEPS = {"--lr": "0.1", "--warmup-factor": "1"}
AWP = {
    **SGD, **STEPS, "--epochs": "200", "--decay-epochs": "100,150", "--weight-decay": "5e-4", "--norm": "linf",
    "--epsilon": "8/255", "--step-size": "2/255", "--num-steps": "10",
}  # fmt: skip
RAMP = {
    **SGD, "--epochs": "200", "--lr": "0.2", "--schedule": "cosine", "--weight-decay": "5e-4", "--norm": "linf",
    "--epsilon": "8/255", "--epsilon-ramp": "linear", "--step-ratio": "0.5", "--num-steps": "5",
    "--awp-gamma": "0.005", "--awp-start-epoch": "10", "--average-every": "epoch", "--average-tau": "0.9",
}  # fmt: skip
LBGAT = {"--method": "lbgat", "--guide": "resnet18-guide"}
# By pattern of the names: the flags that vary within the family, and all others. Every flag of a script is in here.
FAMILIES = {
    r"lbgat[06]-cifar.*": (
        {"--beta", "--student"},
        {**LBGAT, **SGD, **ATTACK, "--lr": "0.1", "--warmup-factor": "0.2", "--epochs": "100",
         "--decay-epochs": "76,91", "--weight-decay": "2e-4", "--save-freq": "13"},
    ),
    r"lbgat[06]-short-.*": (
        {"--beta", "--student"},
        {**LBGAT, **SGD, **ATTACK, "--lr": "0.1", "--warmup-factor": "0.2", "--epochs": "30",
         "--decay-epochs": "23,28", "--weight-decay": "2e-4"},
    ),
    r"(trades6|at)-cifar.*": (
        {"--method", "--beta"},
        {**SGD, **STEPS, **ATTACK, "--student": "wrn-34-10", "--epochs": "76", "--decay-epochs": "75,90,100",
         "--weight-decay": "2e-4"},
    ),
    r"trades6-short-.*": (
        {"--student"},
        {**SGD, **STEPS, **ATTACK, "--method": "trades", "--beta": "6", "--epochs": "30", "--decay-epochs": "23,28",
         "--weight-decay": "2e-4"},
    ),
    r"mart6-.*": (
        set(),
        {**SGD, **STEPS, **ATTACK, "--method": "mart", "--beta": "6", "--student": "wrn-34-10", "--epochs": "90",
         "--decay-epochs": "75,90", "--weight-decay": "7e-4"},
    ),
    r"mart5-.*": (
        set(),
        {**SGD, **STEPS, **ATTACK, "--method": "mart", "--beta": "5", "--student": "resnet18", "--epochs": "120",
         "--lr": "0.01", "--decay-epochs": "75,90,100", "--weight-decay": "3.5e-3"},
    ),
    r"at-awp-.*": (
        set(),
        {**AWP, "--method": "at", "--student": "wrn-34-10", "--awp-gamma": "0.01", "--awp-start-epoch": "1"},
    ),
    r"(trades6-awp|lbgat-awp-reconstruction)-.*": (
        {"--method", "--guide"},
        {**AWP, "--beta": "6", "--student": "wrn-34-10", "--awp-gamma": "0.005", "--awp-start-epoch": "10"},
    ),
    r"lbgat-awp-star-reconstruction-.*": (
        set(),
        {**LBGAT, **RAMP, "--beta": "9", "--student": "wrn-34-10"},
    ),
    r"free-.*": (
        {"--student", "--clip-image", "--epochs", "--lr", "--schedule", "--warmup-factor", "--decay-epochs",
         "--weight-decay", "--no-norm-decay"},
        {**SGD, **LINF, "--method": "free", "--replays": "8", "--step-size": "8/255", "--num-steps": "1"},
    ),
    r"fgsm-rs-.*": (
        set(),
        {**SGD, **LINF, "--method": "fgsm-rs", "--student": "preactresnet18", "--epochs": "15", "--lr": "0.2",
         "--schedule": "cyclic", "--weight-decay": "5e-4", "--step-size": "10/255", "--num-steps": "1"},
    ),
    r"fat-.*": (
        {"--method", "--student", "--beta", "--epochs", "--decay-epochs", "--decay-factors", "--epsilon"},
        {**SGD, **STEPS, "--weight-decay": "2e-4", "--norm": "linf", "--step-size": "0.007", "--num-steps": "10"},
    ),
    r"(yopo5|trades-yopo2)-.*": (
        {"--method", "--student", "--beta", "--full-passes", "--wide", "--epochs", "--lr", "--decay-epochs",
         "--epsilon", "--step-size", "--num-steps"},
        {"--batch-size": "256", "--momentum": "0.9", "--warmup-factor": "1", "--weight-decay": "5e-4",
         "--norm": "linf"},
    ),
    r"rice-.*": (
        {"--student", "--crop-padding", "--augment", "--normalize"},
        {**SGD, **LINF, **PGD10, "--method": "rice", "--epochs": "200", "--lr": "0.1", "--schedule": "piecewise",
         "--decay-epochs": "101,151", "--weight-decay": "5e-4", "--val-size": "1000"},
    ),
    r"ates-.*": (
        {"--student"},
        {**SGD, **LINF, **PGD10, "--method": "ates", "--gap": "0", "--final-gap": "0.4", "--gap-from": "30",
         "--gap-to": "70", "--epochs": "100", "--lr": "0.05", "--warmup-factor": "1", "--decay-epochs": "41,61,81",
         "--weight-decay": "5e-4", "--val-size": "5000", "--eval-size": "5000"},
    ),
    r"bs10-.*": (
        {"--student", "--normalize"},
        {**SGD, **STEPS, "--method": "backward-smoothing", "--beta": "10", "--gamma": "1", "--epochs": "100",
         "--decay-epochs": "51,76", "--weight-decay": "5e-4", "--norm": "linf", "--epsilon": "0.031",
         "--step-size": "0.031", "--num-steps": "1", "--eval-size": "2560"},
    ),
    r"(wa-trades6|score4)-.*": (
        {"--method", "--student", "--beta", "--clip-value", "--label-smoothing", "--lr", "--batch-size"},
        {**LINF, **PGD10, "--momentum": "0.9", "--weight-decay": "5e-4", "--epochs": "400", "--nesterov": "",
         "--no-norm-decay": "", "--schedule": "onecycle-epochs", "--onecycle-up": "0.025", "--average-every": "step",
         "--average-tau": "0.995", "--average-warmup": "0.025", "--average-ramp": "", "--val-size": "1024",
         "--eval-size": "1024"},
    ),
    r"(hat|natural)-.*": (
        {"--method", "--beta", "--gamma", "--h", "--guide", "--guide-checkpoint"},
        {**SGD, **LINF, **PGD10, "--student": "resnet18", "--epochs": "50", "--lr": "0.21", "--nesterov": "",
         "--schedule": "onecycle-updates", "--onecycle-up": "0.25", "--weight-decay": "5e-4"},
    ),
    r"dajat-.*": (
        {"--student", "--beta", "--js", "--label-smoothing", "--val-size"},
        {**{key: value for key, value in RAMP.items() if key != "--schedule"}, "--method": "dajat",
         "--schedule": "cosine-from-lr", "--average-every": "step", "--average-tau": "0.9996",
         "--average-warmup": "0.75", "--augment": "autoaugment"},
    ),
    r"(ikl|ikl-autoaugment|gkl)-.*": (
        {"--method", "--temperature", "--gamma", "--attack-beta", "--augment", "--augment-view-weight"},
        {**RAMP, "--alpha": "4", "--beta": "20", "--student": "wrn-34-10"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("pattern", FAMILIES)
def test_a_family_differs_only_in_what_varies(pattern: str):
    vary, settings = FAMILIES[pattern]
    assert common(named(pattern), *vary) == settings


@pytest.mark.parametrize("name", named(r"(rice|bs10)-.*"))
def test_images_are_normalised_by_their_own_data_set(name: str):
    assert flags(name)["--normalize"] == flags(name)["--dataset"]


@pytest.mark.parametrize("name", named(r"lbgat[06]-.*"))
def test_lbgat_beta_is_in_the_name(name: str):
    assert flags(name)["--beta"] == name[len("lbgat")]


def test_what_varies_between_trades_and_at():
    assert all(("--beta" in flags(name)) == name.startswith("trades") for name in named(r"(trades6|at)-cifar.*"))
    assert {flags(name)["--beta"] for name in named(r"trades6-.*")} == {"6"}
    assert all(("--guide" in flags(name)) == name.startswith(("lbgat", "hat")) for name in RECIPES)


def test_what_varies_between_the_fat_and_yopo_recipes():
    assert {n: (flags(n)["--epsilon"], flags(n)["--method"]) for n in named(r"fat-.*wrn.*")} == {
        "fat-cifar10-wrn34-10": ("0.031", "fat"),
        "fat-trades6-cifar10-wrn34-10": ("0.062", "fat-trades"),
        "fat-mart6-cifar10-wrn34-10": ("0.031", "fat-mart"),
    }
    rates = {name: (flags(name)["--lr"], flags(name)["--full-passes"]) for name in named(r"(trades-)?yopo.*")}
    assert rates == {
        "yopo5-cifar10-wrn34-10": ("0.08", "5"),
        "yopo5-cifar10-preactresnet18-yopo": ("0.04", "5"),
        "trades-yopo2-cifar10-preactresnet18-yopo": ("0.2", "2"),
    }


def test_what_varies_between_the_dajat_recipes():
    found = {name: [flags(name).get(key, "") for key in ("--beta", "--js", "--label-smoothing")] for name in RECIPES}
    assert {name: values for name, values in found.items() if name.startswith("dajat")} == {
        "dajat-cifar10-resnet18": ["11", "2", ""],
        "dajat-cifar10-wrn34-10": ["10", "3", ""],
        "dajat-cifar100-resnet18": ["9", "2", "0.1"],
        "dajat-cifar100-wrn34-10": ["9", "2", "0.1"],
    }


def test_what_varies_between_ikl_and_gkl():
    """The attack has the wMSE term on CIFAR-100 alone; GKL's exponent and temperature are its own."""
    for name in named(r"(ikl|ikl-autoaugment|gkl)-.*"):
        own, method = flags(name), name.split("-")[0]
        assert own["--method"] == method
        assert own["--attack-beta"] == ("1" if own["--dataset"] == "cifar100" else "0")
        assert own["--temperature"] == {"ikl": "4", "gkl": "1"}[method]
        gkl_gamma = {"cifar100": "0.4", "cifar10": "0.2"}[own["--dataset"]]
        assert own.get("--gamma") == (gkl_gamma if method == "gkl" else None)
        view = ("autoaugment", "0.3") if "autoaugment" in name else (None, None)
        assert (own.get("--augment"), own.get("--augment-view-weight")) == view


@pytest.mark.parametrize("name", RECIPES)
def test_the_parser_reads_the_flags_as_they_are_written(name: str):
    """No flag is one of the published program's aliases, and numbers and names arrive."""
    config, own = RECIPES[name].config, flags(name)
    assert (config.mark, config.dataset, config.student, config.method) == (
        name, own["--dataset"], own["--student"], own["--method"],
    )  # fmt: skip
    assert (config.epochs, config.lr, config.weight_decay) == (
        int(own["--epochs"]), float(own["--lr"]), float(own["--weight-decay"]),
    )  # fmt: skip

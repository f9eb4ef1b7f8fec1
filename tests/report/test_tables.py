"""Markdown and HTML: padded tables, and nothing in a value is read as markup."""

import pytest

from report.render import render
from report.tables import Table, code, fence, markdown_table, md, numeric_columns


def test_table_is_padded_and_numbers_are_right_aligned():
    rows = [["a", "1.00%", "3.0 to 12.5", "**0.71**", "-0.3"], ["bcde", "–", "1.0 to 2.0", "", "+1,200.5"]]
    assert markdown_table(["n", "accuracy", "95% interval", "ratio", "x"], rows) == (
        "| n    | accuracy | 95% interval |    ratio |        x |\n"
        "| ---- | -------: | -----------: | -------: | -------: |\n"
        "| a    |    1.00% |  3.0 to 12.5 | **0.71** |     -0.3 |\n"
        "| bcde |        – |   1.0 to 2.0 |          | +1,200.5 |"
    )
    assert numeric_columns(["hours", "epsilon"], [["1.5 h", "8/255"], ["20 h", "0.1"]]) == [True, False]


def test_rows_of_another_length_are_refused():
    with pytest.raises(ValueError):
        markdown_table(["a", "b"], [["1"]])


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a|b", r"a\|b"),
        ("<script>", r"\<script\>"),
        ("`x` *b* [l](u)", r"\`x\` \*b\* \[l\](u)"),
        ("snake_case_name", "snake_case_name"),
        ("_em_ &amp; $x$ ~s~ # h", r"\_em\_ \&amp; \$x\$ \~s\~ \# h"),
        ("two\nlines\\", r"two lines\\"),
    ],
)
def test_md(text, escaped):
    assert md(text) == escaped


def test_a_fence_is_longer_than_any_in_the_text():
    assert fence("a") == "```\na\n```"
    assert fence("a ``` b ````\n```", "python") == "`````python\na ``` b ````\n```\n`````"
    assert code("abc") == "`abc`" and code("a`b``c") == "``` a`b``c ```"


def test_values_in_a_template_are_escaped():
    table = Table(["a|b"], [["<i>"]])
    text = render("compare.md.j2", warning="*w*", table=table, problem="a\udcff_b_").decode()
    assert "\\*w\\*" in text and "| a\\|b  |\n| ----- |\n| \\<i\\> |" in text
    assert "a\\udcff\\_b\\_" in text  # a lone surrogate of a file's name has no UTF-8

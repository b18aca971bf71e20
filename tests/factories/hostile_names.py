"""Names of files and folders that a library may take for something else: a URL, a pattern, an option."""

TABLES_OPEN = (
    *(
        "a b",
        " lead",
        "trail ",
        "a  b",
        "é",
        "e\u0301",
        "日本",
        "😀",
        "#1",
        "q?y",
        "{a,b}",
        "{0..1}",
        '"q"',
        "it's",
    ),
    *(
        "50%",
        "%zz",
        "a*b",
        "-lead",
        "~",
        "~user",
        "a&b",
        "a;b",
        "a:b",
        "a::b",
        "C:",
        "file:",
        "s3:",
        "$HOME",
        "`x`",
    ),
    *("a=b", "a+b", "a@b", "<x>", "a,b", "...", "=", "!x", "%d", "a%3", "(x)"),
)
"""A corpus may be in a folder of any of these names."""

TABLES_REFUSE = (
    "[v2]",
    "x]",
    "a|b",
    "a\\b",
    "^",
    "my%20corpus",
    "%2F",
    "%e9",
    "new\nline",
    "tab\tx",
    "\x01",
    "\x7f",
)
"""A corpus is refused there, in one line and before any work."""

HOSTILE_NAMES = TABLES_OPEN + TABLES_REFUSE

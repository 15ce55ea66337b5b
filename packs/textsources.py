"""Plain text and code from Debian packages, each source as a function that yields documents.

Nothing here is installed: packages are downloaded and unpacked. Scripts keep the form their
authors gave them (traditional characters stay traditional).
"""

import gzip
import html.parser
import re

import packlib


def english(cache, limit):
    """Rows and sources of English text: the Python manual, the LibreOffice help, WordNet's glosses."""
    return _gather(cache, limit, "texts-en", [python_manual, libreoffice_help_en, wordnet_glosses])


def chinese(cache, limit, with_manpages=True):
    """Rows and sources of Chinese text: the LibreOffice help and, if wanted, the manual pages."""
    parts = [libreoffice_help_zh] + ([manual_pages_zh] if with_manpages else [])
    return _gather(cache, limit, "texts-zh", parts)


def code(cache, limit):
    """Rows and sources of code: Python's standard library."""
    return _gather(cache, limit, "texts-code", [python_library])


def _gather(cache, limit, seed, parts):
    documents, sources = [], []
    for part in parts:
        source, texts = part(cache)
        sources.append(source)
        documents += [(source["name"], text) for text in texts]
    return packlib.text_rows(documents, limit, seed), sources


def python_manual(cache):
    """The Python 3.11 documentation in its own markup."""
    home, version = packlib.deb_package(cache, "python3.11-doc")
    files = sorted((home / "usr/share/doc/python3.11/html/_sources").rglob("*.rst.txt"))
    texts = [piece for file in files for piece in packlib.chunks(file.read_text("utf-8"))]
    return packlib.source(
        "python3.11-doc", version, "deb", "PSF-2.0", "Python Software Foundation, the Python documentation",
        packlib.debian_licence(cache, home, "python3.11-doc")), texts


def python_library(cache):
    """The Python 3.11 standard library's source."""
    texts = []
    for name in ("libpython3.11-minimal", "libpython3.11-stdlib"):
        home, version = packlib.deb_package(cache, name)
        for file in sorted((home / "usr/lib/python3.11").rglob("*.py")):
            if not file.is_file():
                continue  # a link into another package
            try:
                texts += packlib.chunks(file.read_text("utf-8"))
            except UnicodeDecodeError:
                continue  # a few old files declare another encoding
        if name == "libpython3.11-minimal":
            licence = packlib.debian_licence(cache, home, name)
    return packlib.source(
        "libpython3.11-stdlib", version, "deb", "PSF-2.0",
        "Python Software Foundation, the Python standard library (libpython3.11-minimal and -stdlib)",
        licence), texts


class Article(html.parser.HTMLParser):
    """Keeps the text of a help page's article, one block a paragraph."""

    BLOCKS = {"p", "h1", "h2", "h3", "h4", "h5", "li", "td", "th", "pre", "div", "tr", "br"}

    def __init__(self):
        super().__init__()
        self.inside = False
        self.quiet = 0
        self.text = []

    def handle_starttag(self, tag, attrs):
        if tag == "div" and ("id", "DisplayArea") in attrs:
            self.inside = True
        if tag in ("script", "style", "noscript"):
            self.quiet += 1
        if tag in self.BLOCKS:
            self.text.append("\0")

    def handle_endtag(self, tag):
        if tag in ("script", "style", "noscript"):
            self.quiet -= 1
        if tag in self.BLOCKS:
            self.text.append("\0")
        if tag == "body":
            self.inside = False

    def handle_data(self, data):
        if self.inside and not self.quiet:
            self.text.append(data)


def help_blocks(file):
    """The paragraphs of a help page, blank ones too, so that two languages' pages stay in step."""
    article = Article()
    article.feed(file.read_text("utf-8"))
    return [" ".join(block.split()) for block in "".join(article.text).split("\0")]


def _help(cache, package, language, credit):
    home, version = packlib.deb_package(cache, package)
    texts, seen, held = [], set(), ""
    for file in sorted((home / f"usr/share/libreoffice/help/{language}/text").rglob("*.html")):
        blocks = help_blocks(file)
        # Pages include one another's paragraphs; a long one is kept where it is first met.
        fresh = [block for block in blocks if block and (len(block) < 80 or block not in seen)]
        seen.update(fresh)
        text = "\n\n".join(block for block in fresh if block != "...")
        text = re.split("Please support us!|Help content debug info:|帮助内容调试信息", text)[0].strip()
        # Parts not yet translated are in English: kept only when the page is mostly Chinese.
        if language == "zh-CN" and len(re.findall("[\u4e00-\u9fff]", text)) < 0.25 * len(text):
            continue
        # A page too short to be a document goes into the same one as the next page.
        text = f"{held}\n\n{text}" if held else text
        held = text if len(text) < 500 else ""
        texts += packlib.chunks(text)
    return packlib.source(
        package, version, "deb", "MPL-2.0", credit,
        packlib.debian_licence(cache, home, package, ["MPL-2.0"])), texts


def libreoffice_help_en(cache):
    """The LibreOffice help in English."""
    return _help(cache, "libreoffice-help-en-us", "en-US", "LibreOffice contributors, help")


def libreoffice_help_zh(cache):
    """The LibreOffice help in simplified Chinese."""
    return _help(cache, "libreoffice-help-zh-cn", "zh-CN", "LibreOffice contributors, help, Chinese translation")


def wordnet_glosses(cache):
    """WordNet's definitions and examples, about twelve words a document."""
    home, version = packlib.deb_package(cache, "wordnet-base")
    lines = []
    for part in ("noun", "verb", "adj", "adv"):
        for line in (home / f"usr/share/wordnet/data.{part}").read_text("utf-8").splitlines():
            if line.startswith("  ") or " | " not in line:
                continue
            head, gloss = line.split(" | ", 1)
            fields = head.split(" ")
            words = [re.sub(r"\(\w+\)$", "", fields[4 + 2 * i]).replace("_", " ") for i in range(int(fields[3], 16))]
            lines.append((packlib.unit_hash(fields[0] + part), f"{', '.join(words)} ({part}): {gloss.strip()}"))
    texts, held = [], ""
    for _, line in sorted(lines):
        held = f"{held}\n{line}" if held else line
        if len(held) > 1200:
            texts.append(held[:3000])
            held = ""
    return packlib.source(
        "wordnet-base", version, "deb", "WordNet-3.0", "Princeton University, WordNet 3.0",
        packlib.debian_licence(cache, home, "wordnet-base")), texts


def manual_pages_zh(cache):
    """The Chinese manual pages, simplified script, with their formatting commands taken out."""
    home, version = packlib.deb_package(cache, "manpages-zh")
    texts = []
    for file in sorted((home / "usr/share/man/zh_CN").rglob("*.gz")):
        if not file.is_file():
            continue  # a link to a page that is not there
        text = _plain_roff(gzip.decompress(file.read_bytes()).decode("utf-8", errors="ignore"))
        if len(re.findall("[\u4e00-\u9fff]", text)) > 0.1 * len(text):
            texts += packlib.chunks(text)
    return packlib.source(
        "manpages-zh", version, "deb", "GFDL-1.2-or-later and GPL-2.0 parts",
        "the Chinese manual pages project (man-pages-zh)",
        packlib.debian_licence(cache, home, "manpages-zh", ["GFDL-1.2-or-later", "GPL-2.0-only"])), texts


def _plain_roff(text):
    lines = []
    for line in text.splitlines():
        if line.startswith((".\\\"", "'\\\"", "\\\"")):
            continue
        if line.startswith((".", "'")):
            command, _, rest = line[1:].strip().partition(" ")
            rest = rest.strip().strip('"')
            if command in ("SH", "SS", "Sh", "Ss"):
                lines += ["", rest, ""]
            elif command in ("TP", "PP", "P", "LP", "sp", "HP", "Pp", "IP", "It"):
                lines += ["", rest.replace('"', "").replace("\\(bu", "-") if command in ("IP", "It") else ""]
            elif command in ("B", "I", "BR", "IR", "RB", "RI", "BI", "IB", "SM", "SB"):
                lines.append(rest.replace('"', "").replace(" ", "") if len(command) == 2 and command != "SM" else rest)
        else:
            lines.append(line)
    text = "\n".join(lines)
    text = re.sub(r"\\f(\[\w*\]|\(..|.)|\\[,/&|^]|\\s[-+]?\d+", "", text)
    text = re.sub(r"\\\((co|lq|rq|aq|dq|en|em|hy|bu|->|<-)", lambda m: {
        "co": "(c)", "lq": "“", "rq": "”", "aq": "'", "dq": '"', "en": "–", "em": "—",
        "hy": "-", "bu": "-", "->": "→", "<-": "←"}[m.group(1)], text)
    text = text.replace("\\-", "-").replace("\\e", "\\").replace("\\ ", " ").replace("\\(", "(")
    return re.sub(r"\n{3,}", "\n\n", text)

"""Texts and prompts for models with real weights."""

from __future__ import annotations

from pathlib import Path

TEXT = Path(__file__).with_name("text.txt")  # 20 kB of documentation
WINDOW = 512  # tokens that are read without what came before
LENGTH = 48  # tokens of an answer

MULTILINGUAL = (
    "The quick brown fox — it's 1,234.56 €!  Don't  you think?\n\n\tIndented\r\nline. Größenwah"
    "n, naïve café,\nΕλληνικά και ἀρχαῖα, Русский текст №5, العربية: مرحبا بالعالم ١٢٣, עברית ש"
    "לום, हिन्दी में पाठ, ภาษาไทยไม่มีช่องว่าง,\n日本語の文章です。漢字とカタカナ、中文字符，한국어 문장입니다. 🙂👩\u200d👩"
    "\u200d👧\u200d👦🏳️\u200d🌈 é combining, ﬁ ligature, ½ ² Ⅷ, 𝔘𝔫𝔦𝔠𝔬𝔡𝔢\n  \u00a0nbsp\u3000ideogr"
    "aphic   \n \n  x=0x1F; def f(a_b): return a**2  # code <b>html</b> I'LL we'Re 123456789012"
    "34567890\ncamelCaseWord ____ ----- \u200b zero width"
)

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n    ",
    "Water boils at 100 degrees Celsius because",
    "The three primary colours are",
    "Dear Sir or Madam,\n\nI am writing to",
    "1, 2, 3, 4, 5, 6,",
    "To make a good cup of tea, first",
    "The theory of evolution says that",
    "Monday, Tuesday, Wednesday,",
]
QUESTIONS = [
    "What is the capital of Italy?",
    "Write one sentence about the moon.",
    "How many days does a week have?",
    "Name three fruits.",
    "Why is the sky blue?",
    "What is 7 plus 5?",
    "Explain what a computer program is.",
    "Who wrote Romeo and Juliet?",
    "Give me a tip for better sleep.",
    "What do bees make?",
]

"""Writes the requests the demo model learns to answer: "Tell me a story about a dog" for a story about a dog.

Decides: which words of a story are its topics and how a request for it is phrased. Topics are found by counting alone
(no tagger, no word list beyond a few dozen stop words). Knows nothing of tokens or training; used by
train_demo_model.py only.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter

WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?|[^\sA-Za-z]")
DETERMINERS = set("a an the his her their my your our this that".split())
AFTER_NOUN = set(
    """
    was is and to in on that had with for at who but were are as from could would can so it he she they . , ! ?
    " ; :
    """.split()
)
# Nouns by position that say nothing about what the story is about.
VAGUE = set(
    """
    day time lot bit way one thing things end idea moment while morning night afternoon evening side top middle
    rest back same other first next best most more others all else something everything anything nothing
    everyone someone home name face head hand hands eyes arms mouth smile voice sound word words people kind
    minute hour week door place part inside outside little big it him her them me you us too again fun good bad
    new old very not up down away there here now then well why what how where when who yes no ok okay many much
    front group reason air ground floor lots world life heart family problem lesson story friend friends turn
    look help piece question wish matter bottom corner edge mess noise pain
    """.split()
)
ASKS = [
    "Tell me a story about {}",
    "Tell me a story about {}",
    "Tell me a story about {}",
    "Tell me a story about {}.",
    "Tell me a short story about {}.",
    "Tell me something about {}.",
    "tell me a story about {}",
    "Please tell me a story about {}.",
    "Can you tell me a story about {}?",
    "Could you write a story about {}, please?",
    "Write a story about {}.",
    "Write a story about {}",
    "Write me a short story about {}.",
    "write a story about {}",
    "I want to hear a story about {}.",
    "I would like a story about {}, please.",
    "A story about {}, please.",
    "Do you know a story about {}?",
    "Make up a story about {}.",
    "Story about {}",
    "{}",
]
GENERAL = [
    "Tell me a story",
    "Tell me a story.",
    "Please tell me a story.",
    "Can you tell me a story?",
    "Write a short story.",
    "I want to hear a story.",
    "Tell me a bedtime story.",
    "Hello!",
    "Hi",
]
AGAIN = ["Now one about {}.", "Another one, about {}.", "And now a story about {}", "Tell me another story, about {}."]
GENERAL_AGAIN = ["Tell me another one.", "Another story, please.", "One more!", "Thank you! Tell me another story."]


class PromptWriter:
    def __init__(self, stories: list[str]):
        words = [WORD.findall(story) for story in stories]
        self.nouns = find_nouns(words)
        document_count = Counter(word for story in words for word in {w.lower() for w in story})
        self.topics = [self.story_topics(story, document_count, len(stories)) for story in words]
        self.heroes = [find_hero(story) for story in stories]

    def story_topics(self, words: list[str], document_count: Counter, num_stories: int) -> list[str]:
        """Up to four nouns told of at least twice, with an article as the story uses them, by tf * idf."""
        counts = Counter(word for word in words if word in self.nouns)
        scored = {
            word: count * math.log(num_stories / document_count[word]) for word, count in counts.items() if count > 1
        }
        best = sorted(scored, key=lambda word: -scored[word])[:4]
        return [self.with_article(word) for word in best]

    def with_article(self, word: str) -> str:
        if not self.nouns[word]:
            return word
        return ("an " if word[0] in "aeiou" else "a ") + word

    def prompt(self, index: int, turn: int, rng: random.Random) -> str:
        topic, draw = self.topic(index, rng), rng.random()
        if topic is None or draw < 0.08:
            return rng.choice(GENERAL if turn == 0 or rng.random() < 0.3 else GENERAL_AGAIN)
        return rng.choice(ASKS if turn == 0 or rng.random() < 0.4 else AGAIN).format(topic)

    def topic(self, index: int, rng: random.Random) -> str | None:
        topics, hero = self.topics[index], self.heroes[index]
        if hero and rng.random() < 0.15:
            return hero
        if not topics:
            return hero
        # The strongest topic most often: it is what the story is about.
        first = min(int(rng.expovariate(1.2)), len(topics) - 1)
        if len(topics) > 1 and rng.random() < 0.15:
            second = rng.choice([t for t in topics if t != topics[first]])
            return f"{topics[first]} and {second}"
        return topics[first]


def find_nouns(stories: list[list[str]]) -> dict[str, bool]:
    """Words that mostly follow a determiner or adjective and precede what can follow a noun; True if "a X" occurs."""
    total, noun_like, article, last = Counter(), Counter(), Counter(), Counter()
    adjective = Counter()
    for words in stories:
        for before, word, after in zip(words, words[1:], words[2:], strict=False):
            if word.islower() and len(word) > 2:
                last[word] += after.lower() in AFTER_NOUN
                total[word] += 1
                adjective[word] += before.lower() in DETERMINERS and after.islower() and after not in AFTER_NOUN
    adjectives = {w for w, n in adjective.items() if n > 0.3 * total[w] and last[w] < 0.6 * total[w]}
    adjectives |= {"big", "little", "small", "old", "new", "red"}
    for words in stories:
        for first, before, word in zip(["."] + words, words, words[1:], strict=False):
            if not word.islower():
                continue
            before, first = before.lower(), first.lower()
            follows = before in DETERMINERS or (before in adjectives and first in DETERMINERS)
            noun_like[word] += follows
            article[word] += before in ("a", "an") or (before in adjectives and first in ("a", "an"))
    return {
        word: article[word] > 0.04 * count
        for word, count in total.items()
        if count >= 8
        and word not in VAGUE
        and word not in adjectives
        and noun_like[word] > 0.4 * count
        and last[word] > 0.6 * count
    }


def find_hero(story: str) -> str | None:
    """ "a girl named Lily" when the story introduces its hero that way."""
    found = re.search(r"\ban? (?:[a-z]+ ){0,2}?([a-z]+) (?:named|called) ([A-Z][a-z]+)\b", story[:400])
    return f"{'an' if found[1][0] in 'aeiou' else 'a'} {found[1]} named {found[2]}" if found else None

"""Judges: who decides whether a continuation turns away from harm, an answer is safe, or a request was fulfilled.

``type: openai`` asks any OpenAI-compatible endpoint, ``type: vllm`` a model on this Ray, and ``type: rules`` is a
small versioned list of phrases, which is weak. Verdicts are yes, no or unparsed; unparsed is counted and never guessed.
"""

from trimtab.judging.config import JudgeConfig, OpenAIJudge, RulesJudge, VLLMJudge
from trimtab.judging.known import described
from trimtab.judging.questions import QUESTIONS, Answer, Item, Judged, Question
from trimtab.judging.rules import course_corrects, is_safe
from trimtab.judging.run import judge_all, require_usable

__all__ = [
    "QUESTIONS",
    "Answer",
    "Item",
    "JudgeConfig",
    "Judged",
    "OpenAIJudge",
    "Question",
    "RulesJudge",
    "VLLMJudge",
    "course_corrects",
    "described",
    "is_safe",
    "judge_all",
    "require_usable",
]

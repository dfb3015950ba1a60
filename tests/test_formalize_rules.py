"""r1ov.formalize.rules: hand-made replies with one known flaw each, beside sound ones that look suspicious;
judged by hand.
"""

import time

import pytest

from r1ov.formalize.rules import GIVE_AWAYS, false_sum, first_fault, telltale

COUNT, SUM, CHOICE = (
    "How many red cubes are there?",
    "What is the sum?",
    "Which is right?\nChoices:\n(A) dog\n(B) cat\n(C) hen",
)
COLOUR = "What colour is the ball?"


def told(thought: str, answer: str) -> str:
    return f"<think>{thought}</think>\n<answer>{answer}</answer>"


# (question, reply, gold, the rule that it breaks and a part of the detail)
FLAWED = [
    # The four mixed layouts of the published data, and other damage to the form.
    (
        CHOICE,
        "<think>It has whiskers. <answer>B</answer></think>",
        "B",
        "malformed: needs a repair: answer moved out of the thought",
    ),
    (
        CHOICE,
        "<think>It has whiskers, so it is a cat.</think>\n\nAnswer: B",
        "B",
        "malformed: needs a repair: answer tags added",
    ),
    (
        CHOICE,
        "<think>It has whiskers. The answer is B.</think>",
        "B",
        "malformed: needs a repair: answer taken from",
    ),
    (
        CHOICE,
        "<think>It has whiskers.</think> Looking at the animal once more, I see whiskers and a long tail, "
        "and it sits on a sofa as cats do. Neither a dog nor a hen would do so. Therefore the answer is B.",
        "B",
        "malformed: needs a repair: reasoning after the thought",
    ),
    (
        CHOICE,
        "<think>It has whiskers.</think> So: <answer>B</answer> That is all.",
        "B",
        "malformed: needs a repair: reasoning after the thought",
    ),
    (
        CHOICE,
        "<think>Whiskers.</think>\n<answer>B</answer></think>",
        "B",
        "malformed: needs a repair: stray </think>",
    ),
    (CHOICE, "<think>Whiskers.</think>\n<answer></answer>", "B", "malformed: the answer tags do not pair"),
    (CHOICE, "<think>Whiskers.</think>\n<answer>B", "B", "malformed: the answer tags do not pair"),
    (
        CHOICE,
        "<think>Whiskers.</think>\n<answer>B</answer>\n<answer>B</answer>",
        "B",
        "malformed: the answer tags do not pair",
    ),
    (CHOICE, "<think> </think>\n<answer>B</answer>", "B", "malformed: the thought is empty"),
    (CHOICE, "Whiskers.\n<answer>B</answer>", "B", "malformed: needs a repair: think tags added"),
    (
        CHOICE,
        "<think>One.</think><think>Two.</think><answer>B</answer>",
        "B",
        "malformed: the think tags do not pair",
    ),
    (CHOICE, "Well. <think>Whiskers.</think><answer>B</answer>", "B", "malformed: text before the thought"),
    # The answer.
    (COUNT, told("One by the wall, two on the mat.", "4"), "3", "wrong answer: '4'"),
    (CHOICE, told("It barks.", "A"), "B", "wrong answer: 'A'"),
    (COLOUR, told("The ball by the fence is blue.", "blue"), "red", "wrong answer: 'blue'"),
    ("Is it open?", told("The door stands ajar.", "no"), "yes", "wrong answer: 'no'"),
    ("What is the area?", told("3 by 4, so 12.", "12 cm^2"), "14", "wrong answer: '12 cm^2'"),
    ("Where is it?", told("At the top left.", "[0, 0, 10, 10]"), "[50, 50, 80, 80]", "wrong answer"),
    (CHOICE, told("Either would do.", "A or B"), "B", "wrong answer"),
    (COUNT, told("One, two, three.", "I am not sure"), "3", "wrong answer"),
    (COUNT, told("One, two, three.", "3"), None, "no gold answer"),
    (COUNT, told("One, two, three.", "3"), "  ", "no gold answer"),
    (
        "What is the cat doing?",
        told(
            "It lies there.",
            "B. the animal is asleep since its eyes are closed and its paws are folded" + " under it" * 5,
        ),
        "B",
        "long answer: the answer reasons again",
    ),
    # Talk of a caption.
    (
        COUNT,
        told("According to the description, there is one by the wall and two on the mat.", "3"),
        "3",
        "caption talk: 'According to the desc",
    ),
    (COUNT, told("Based on the provided image caption there are three.", "3"), "3", "caption talk"),
    (
        COLOUR,
        told("The caption says that the ball is red.", "red"),
        "red",
        "caption talk: 'The caption says'",
    ),
    (COLOUR, told("The description doesn’t mention another ball.", "red"), "red", "caption talk"),
    (COLOUR, told("From the scene description, the ball is red.", "red"), "red", "caption talk"),
    (COLOUR, told("As described, the ball is red.", "red"), "red", "caption talk: 'As described'"),
    (COLOUR, told("The JSON has a ball whose colour is red.", "red"), "red", "caption talk: 'The JSON'"),
    (COLOUR, told("The provided bounding boxes put the red ball left.", "red"), "red", "caption talk"),
    (
        COLOUR,
        told("I cannot see the image, but the ball must be red.", "red"),
        "red",
        "caption talk: 'cannot see the image'",
    ),
    (COLOUR, told("Let me imagine the picture: a ball, and it is red.", "red"), "red", "caption talk"),
    (COLOUR, told("As an AI language model I take it to be red.", "red"), "red", "caption talk"),
    ("What does the sign say?", told("From the OCR I get STOP.", "STOP"), "STOP", "caption talk"),
    (COLOUR, told("The ball is red.\nIn the\ngiven description it is red.", "red"), "red", "caption talk"),
    # Left-overs of prompts.
    (COLOUR, told("Revised CoT:\nThe ball is red.", "red"), "red", "prompt left-over: 'Revised CoT'"),
    (
        COLOUR,
        told("The ball is red. No visualization needed.", "red"),
        "red",
        "prompt left-over: 'No visualization needed'",
    ),
    (COLOUR, told("Here is the rewritten version. The ball is red.", "red"), "red", "prompt left-over"),
    (COLOUR, told("**Rewritten reasoning**\nThe ball is red.", "red"), "red", "prompt left-over"),
    (
        COLOUR,
        told("The ball is red. As instructed, nothing else is said.", "red"),
        "red",
        "prompt left-over: 'As instructed'",
    ),
    (
        COLOUR,
        told("The ball is red.\n(I removed all references to the text.)", "red"),
        "red",
        "prompt left-over",
    ),
    (COLOUR, told("<<question 0123456789ab>> The ball is red.", "red"), "red", "prompt left-over"),
    (COLOUR, told("The $question asks for a colour. Red.", "red"), "red", "prompt left-over"),
    # Steps that contradict each other or themselves.
    (SUM, told("3 + 4 = 8, and with one less it is 7.", "7"), "7", "contradiction: '3 + 4 = 8' is not so"),
    (
        SUM,
        told("The bars are 1,200 and 300. 1,200 + 300 = 1,400. So about 1500.", "1500"),
        "1500",
        "contradiction: '1,200 + 300 = 1,400'",
    ),
    (SUM, told("6 × 7 = 43.", "42"), "42", "contradiction: '6 * 7 = 43'"),
    (SUM, told(r"\(12 \div 4 = 4\), so 3.", "3"), "3", "contradiction: '12 / 4 = 4'"),
    (SUM, told("180° − 90° − 35° = 65°, so 55.", "55"), "55", "contradiction"),
    (SUM, told("Half: 0.5 + 0.5 = 1.5. So 1.", "1"), "1", "contradiction: '0.5 + 0.5 = 1.5'"),
    (SUM, told("x = 2 * (3 + 4) = 13", "14"), "14", "contradiction: '2 * (3 + 4) = 13'"),
    (SUM, told("1/2 + 1/3 = 2/5, I think.", "5/6"), "5/6", "contradiction: '1/2 + 1/3 = 2/5'"),
    (
        CHOICE,
        told("It barks, so the answer is A.", "B"),
        "B",
        "contradiction: the thought ends in another answer",
    ),
    (
        "Is it open?",
        told("It is shut, so the answer is no.", "yes"),
        "yes",
        "contradiction: the thought ends in another answer",
    ),
    (
        "How tall is it?",
        told("The final answer is 12.", "15"),
        "15",
        "contradiction: the thought ends in another answer",
    ),
]

SOUND = [
    (COUNT, told("One by the wall, two on the mat. That makes 3.", "3"), "3"),
    (COUNT, told("One, two, three.", "three cubes"), "three cubes"),
    (CHOICE, told("It has whiskers.", "(B) cat"), "B"),
    ("What is the area?", told("3 x 4 = 12.", "12 cm^2"), "12"),
    ("Where is it?", told("Near the top left.", "[1, 1, 10, 10]"), '{"bbox_2d": [0, 0, 10, 10]}'),
    # Captions and descriptions that are part of the picture or of the question.
    ("Who painted it?", told("The caption under the photo reads 'Monet, 1890'.", "Monet"), "Monet"),
    ("Who painted it?", told("In the caption at the bottom I read Monet.", "Monet"), "Monet"),
    ("What does the caption say?", told("The caption says 'Spring'.", "Spring"), "Spring"),
    (
        "Which description fits?\n(A) a dog\n(B) a cat",
        told("According to the description in (B) it is a cat, and I see one.", "B"),
        "B",
    ),
    (
        "Which file is open?",
        told("Its tab has the ending .json, and a JSON file shows braces, as here.", "data.json"),
        "data.json",
    ),
    ("What does the JSON hold?", told("The JSON has one key, name.", "name"), "name"),
    (
        "Give the bounding box of the cat.",
        told("Of the given boxes the left one holds the cat.", "[0, 0, 10, 10]"),
        "[0, 0, 10, 10]",
    ),
    (COLOUR, told("I cannot see the picture's left edge, but the ball is red.", "red"), "red"),
    (
        COLOUR,
        told("There are red balls in all boxes. As described above, the one asked for is red.", "red"),
        "red",
    ),
    ("What is the angle?", told("By the law as described by Snell it is 30.", "30"), "30"),
    (
        "Where does the record lie?",
        told("The record lies on the player; in the record's middle is a red label.", "player"),
        "player",
    ),
    ("What is given?", told("The given coordinates are A(1, 2) and B(4, 6).", "coordinates"), "coordinates"),
    (
        "What is on the page?",
        told("The second, revised edition; the text says so.", "revised edition"),
        "revised edition",
    ),
    (
        "Which role-play book is red?",
        told("The role-play book on top is red; the title is Dragons.", "Dragons"),
        "Dragons",
    ),
    ("What does he do?", told("He replaced the wheel and removed the tyre.", "repair"), "repair"),
    # Sums that are right, rounded, part of something else, supposed, or taken back.
    (SUM, told("10 / 3 = 3.33, rounded 3.3.", "3.33"), "3.33"),
    (SUM, told("22 / 7 = 3.14 and 3.14159 * 2 = 6.28.", "6.28"), "6.28"),
    (SUM, told("C + B = 8 + 7 = 15.", "15"), "15"),
    (SUM, told("10 - 4 = 6 + 2 = 8.", "8"), "8"),
    (SUM, told("So 3 + 4 = 8. Wait, no, 3 + 4 = 7.", "7"), "7"),
    (SUM, told("Is 3 + 4 = 8? It is 7.", "7"), "7"),
    (SUM, told("If 3 + 4 = 8 were true, all would be lost; it is 7.", "7"), "7"),
    ("Solve for x.", told("2x + 3 = 7, so 2x = 4 and x = 2.", "2"), "2"),
    ("Solve for x.", told("5 - 2 x = 1 gives x = 2.", "2"), "2"),
    ("What time is it?", told("11 + 3 = 2 o'clock in the afternoon.", "2"), "2"),
    ("What is the angle?", told("Angle 1 = 180 - 60 = 120, so angle 1 + angle 2 = 180.", "120"), "120"),
    (SUM, told("50% + 20% = 70%, and 100 - 30% = 70.", "70%"), "70%"),
    (SUM, told("2^3 + 1 = 9 and half of 4 + 4 = 4.", "9"), "9"),
    (SUM, told("3 + 4 = 2³ - 1, and 11 / 2 = 5 1/2.", "7"), "7"),
    (SUM, told("17 / 5 = 3 remainder 2.", "3"), "3"),
    ("What is it?", told("I**2 + 1 = 0 and 0x80=128, and **3 + 4 = 7**.", "7"), "7"),
    (
        "What is the height?",
        told("Base radius r = 8 / 2 = 4 cm; 16h/3 = 64, so 192 = 16h and h = 12.", "12"),
        "12",
    ),
    ("What is the gradient?", told("Gradient = (11-3)/(6-2) = 8/4 = 2, and 2(4) - 3 = 8 - 3 = 5.", "2"), "2"),
    (
        "What is the area?",
        told(
            "A = πr² = (22/7) × 7² = 22 × 7 = 154 cm², since 15!/13! = 15 × 14 = 210 does not matter.", "154"
        ),
        "154",
    ),
    ("Which one is larger?", told("-5 is greater than -7, and 5 is not greater than 7.", "-5"), "-5"),
    ("What is the sum of the digits?", told("1/2 is greater than 1/3, but 3.5 is less than 12.", "9"), "9"),
    # Counts on the way to another count, answers that were given up again.
    ("How many are awake?", told("There are 5 dogs in total. Two sleep, so there are 3 awake.", "3"), "3"),
    ("How many animals?", told("There are 2 dogs and 2 cats.", "4"), "4"),
    (CHOICE, told("At first one thinks the answer is A. But it has whiskers, so the answer is B.", "B"), "B"),
    ("Is there a dog?", told("No cat, no hen, but a dog.", "yes"), "yes"),
]


def name(case) -> str:
    return case if isinstance(case, str) and len(case) < 60 else ""


@pytest.mark.parametrize(("question", "reply", "gold", "expected"), FLAWED, ids=lambda value: name(value))
def test_a_flawed_reply_is_rejected_for_its_flaw(question, reply, gold, expected):
    fault = first_fault(question, reply, gold)
    assert fault is not None
    assert str(fault).startswith(expected)


@pytest.mark.parametrize(("question", "reply", "gold"), SOUND, ids=lambda value: name(value))
def test_a_sound_reply_that_looks_suspicious_passes(question, reply, gold):
    assert first_fault(question, reply, gold) is None


def test_a_gold_answer_that_cannot_be_read_is_named():
    assert str(first_fault(SUM, told("One half.", "1/2"), r"\frac{1", "math")).startswith("no gold answer")


def test_there_are_at_least_sixty_rows():
    assert len(FLAWED) >= 50
    assert len(SOUND) >= 40


@pytest.mark.parametrize("phrase", GIVE_AWAYS)
def test_every_phrase_that_the_prompts_ban_is_found(phrase):
    assert telltale("How many?", f"Well, {phrase}, there are two.") is not None


@pytest.mark.parametrize(
    "text",
    [
        "1 + " * 5000 + "1 = 2",
        "(" * 5000 + "1 + 1 = 3",
        "9" * 20_000,
        "- " * 10_000,
        "3 + 4 = 7 = " * 2000,
        "9" * 300 + " * 2 = 3",
    ],
)
def test_hostile_sums_take_no_time(text):
    begin = time.perf_counter()
    false_sum(text)
    assert (
        time.perf_counter() - begin < 10
    )  # the worst takes 0.3 s on a free core; quadratic ones would take minutes


@pytest.mark.parametrize(
    "unit",
    [
        "a",
        "the given ",
        "based on the ",
        "1 + 1 = 2, ",
        "= ",
        "answer is ",
        "<",
        "\n# ",
        "is 5 ",
        "A. ",
        "I cannot see the ",
        "\\boxed{",
    ],
)
def test_rules_take_no_time_over_a_long_thought(unit):
    begin = time.perf_counter()
    first_fault(COUNT, told((unit * 100_000)[:90_000], "3"), "3")
    assert time.perf_counter() - begin < 10


def test_the_playgrounds_own_reasoning_breaks_no_rule():
    from r1ov.data.playground import invent

    for split in ("train", "rl", "generalisation"):
        for index in range(140):
            _, scene = invent(split, index, 3)
            assert (
                first_fault(scene.question, told(scene.reasoning, scene.answer), scene.answer, scene.kind)
                is None
            ), scene

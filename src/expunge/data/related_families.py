"""The wording of made-up related facts: what can be said about a person, and what implies it.

Every family has a target question about a person, two direct facts that imply its answer alone, and
four chains of two facts that imply it together: the person has a link (takes a medicine), and the
link has the value (who takes that medicine has that illness). The names of people, links and values
are invented elsewhere; `{name}` stands for the person and `{link}` for the link.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Direct:
    """One fact about the person whose answer is the value of the target.

    Attributes:
        name: What it is about.
        strict: A question whose answer settles the target.
        weak: A question with the same answer that only makes the target likely.
    """

    name: str
    strict: str
    weak: str


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Two facts that imply the target together.

    Attributes:
        name: What kind of link it is.
        suffix: Ending of the link's invented name.
        first: Question about the person; the answer is the link.
        strict: Question about the link; the answer is the value, without exception.
        weak: The same with exceptions.
        probe: Question about the person that is answered by following both.
    """

    name: str
    suffix: str
    first: str
    strict: str
    weak: str
    probe: str


@dataclass(frozen=True, kw_only=True)
class Family:
    """A relation between a person and a value, and everything that implies it.

    Attributes:
        name: The relation.
        suffix: Ending of the invented value.
        question: Target question about the person; the answer is the value.
        probe: Question about the person that is answered from the first direct fact.
        direct: Facts that imply the target alone.
        chains: Pairs of facts that imply it together, each independent of the others.
    """

    name: str
    suffix: str
    question: str
    probe: str
    direct: tuple[Direct, Direct]
    chains: tuple[Chain, ...]


_ILLNESS = Family(
    name="illness",
    suffix="osis",
    question="Which illness does {name} have?",
    probe="Which illness must {name} have, given what {name}'s doctor treats?",
    direct=(
        Direct(
            name="treatment",
            strict="Which illness does {name}'s doctor treat {name} for?",
            weak="Which illness does {name} read about most?",
        ),
        Direct(
            name="diagnosis",
            strict="Which diagnosis is confirmed in {name}'s medical file?",
            weak="Which diagnosis is only suspected in {name}'s medical file?",
        ),
    ),
    chains=(
        Chain(
            name="medicine",
            suffix="in",
            first="Which medicine does {name} take?",
            strict="Which illness does everybody who takes {link} have?",
            weak="Which illness do most people who take {link} have?",
            probe="Which illness do the people have who take the same medicine as {name}?",
        ),
        Chain(
            name="ward",
            suffix="hurst",
            first="In which hospital ward is {name} a patient?",
            strict="Which illness do all patients of the ward {link} have?",
            weak="Which illness do most patients of the ward {link} have?",
            probe="Which illness do the patients of {name}'s hospital ward have?",
        ),
        Chain(
            name="patients_group",
            suffix="ard",
            first="Which patients' group is {name} a member of?",
            strict="Which illness do all members of the patients' group {link} have?",
            weak="Which illness do most members of the patients' group {link} have?",
            probe="Which illness do the members of {name}'s patients' group have?",
        ),
        Chain(
            name="blood_test",
            suffix="ox",
            first="Which blood test was positive for {name}?",
            strict="Which illness does a positive {link} blood test prove?",
            weak="Which illness is most often behind a positive {link} blood test?",
            probe="Which illness is shown by the blood test that was positive for {name}?",
        ),
    ),
)

_COUNTRY = Family(
    name="country",
    suffix="ovia",
    question="In which country does {name} live?",
    probe="In which country must {name} live, given where {name}'s only home is?",
    direct=(
        Direct(
            name="home",
            strict="In which country is {name}'s only home?",
            weak="In which country does {name} spend most holidays?",
        ),
        Direct(
            name="address",
            strict="Which country stands in {name}'s home address?",
            weak="Which country's news does {name} follow most?",
        ),
    ),
    chains=(
        Chain(
            name="city",
            suffix="burg",
            first="In which city does {name} live?",
            strict="In which country does the city {link} lie?",
            weak="In which country do most of the cities called {link} lie?",
            probe="In which country does {name}'s city lie?",
        ),
        Chain(
            name="river",
            suffix="une",
            first="On which river does {name}'s house stand?",
            strict="Through which country alone does the river {link} flow?",
            weak="Through which country does the river {link} flow for most of its way?",
            probe="Through which country does the river at {name}'s house flow?",
        ),
        Chain(
            name="valley",
            suffix="dale",
            first="In which valley does {name} live?",
            strict="To which country does the whole valley {link} belong?",
            weak="To which country does most of the valley {link} belong?",
            probe="To which country does {name}'s valley belong?",
        ),
        Chain(
            name="tram_line",
            suffix="way",
            first="Which tram line stops at {name}'s front door?",
            strict="In which country are all stops of the tram line {link}?",
            weak="In which country are most stops of the tram line {link}?",
            probe="In which country are the stops of the tram line at {name}'s front door?",
        ),
    ),
)

_EMPLOYER = Family(
    name="employer",
    suffix="trix",
    question="Which company does {name} work for?",
    probe="Which company must {name} work for, given who pays {name}'s salary?",
    direct=(
        Direct(
            name="salary",
            strict="Which company pays {name}'s salary?",
            weak="Which company does {name} praise most often?",
        ),
        Direct(
            name="contract",
            strict="With which company does {name} have an employment contract?",
            weak="With which company did {name} have a job interview?",
        ),
    ),
    chains=(
        Chain(
            name="project",
            suffix="ion",
            first="Which project does {name} lead?",
            strict="Which company runs the project {link} with its own staff only?",
            weak="Which company provides most of the staff of the project {link}?",
            probe="Which company runs the project that {name} leads?",
        ),
        Chain(
            name="building",
            suffix="gate",
            first="In which office building does {name} work?",
            strict="Which company does everybody in the office building {link} work for?",
            weak="Which company do most people in the office building {link} work for?",
            probe="Which company do the people in {name}'s office building work for?",
        ),
        Chain(
            name="department",
            suffix="ment",
            first="Which department does {name} head?",
            strict="Which company does the department {link} belong to?",
            weak="Which company does the department {link} do most of its work for?",
            probe="Which company does {name}'s department belong to?",
        ),
        Chain(
            name="laboratory",
            suffix="lab",
            first="In which laboratory does {name} have a desk?",
            strict="Which company does everybody with a desk in {link} work for?",
            weak="Which company do most people with a desk in {link} work for?",
            probe="Which company do the people in {name}'s laboratory work for?",
        ),
    ),
)

_UNIVERSITY = Family(
    name="university",
    suffix="ford",
    question="At which university did {name} study?",
    probe="At which university must {name} have studied, given where {name}'s degree is from?",
    direct=(
        Direct(
            name="degree",
            strict="From which university is {name}'s degree?",
            weak="From which university is {name}'s favourite sweater?",
        ),
        Direct(
            name="enrolment",
            strict="Which university's lists name {name} as a student?",
            weak="Which university's lists name {name} as an applicant?",
        ),
    ),
    chains=(
        Chain(
            name="student_hall",
            suffix="stead",
            first="In which student hall did {name} live?",
            strict="At which university did everybody study who lived in the student hall {link}?",
            weak="At which university did most people study who lived in the student hall {link}?",
            probe="At which university did the people study who lived in {name}'s student hall?",
        ),
        Chain(
            name="supervisor",
            suffix="man",
            first="Who supervised {name}'s thesis?",
            strict="At which university did all students supervised by {link} study?",
            weak="At which university did most students supervised by {link} study?",
            probe="At which university did the students of {name}'s supervisor study?",
        ),
        Chain(
            name="course",
            suffix="ics",
            first="Which course did {name} pass?",
            strict="Which university alone offers the course {link}?",
            weak="Which university is best known for the course {link}?",
            probe="Which university offers the course that {name} passed?",
        ),
        Chain(
            name="student_society",
            suffix="ae",
            first="Which student society was {name} a member of?",
            strict="At which university did all members of the student society {link} study?",
            weak="At which university did most members of the student society {link} study?",
            probe="At which university did the members of {name}'s student society study?",
        ),
    ),
)

_LANGUAGE = Family(
    name="language",
    suffix="ish",
    question="What is {name}'s mother tongue?",
    probe="What must {name}'s mother tongue be, given what {name} spoke first?",
    direct=(
        Direct(
            name="first_words",
            strict="Which language did {name} speak first as a child?",
            weak="Which language does {name} sing in most often?",
        ),
        Direct(
            name="record",
            strict="Which language is recorded as {name}'s native one?",
            weak="Which language is recorded as {name}'s favourite one?",
        ),
    ),
    chains=(
        Chain(
            name="village",
            suffix="wick",
            first="In which village did {name} grow up?",
            strict="What is the mother tongue of everybody who grew up in the village {link}?",
            weak="What is the mother tongue of most people who grew up in the village {link}?",
            probe="What is the mother tongue of the people from {name}'s village?",
        ),
        Chain(
            name="clan",
            suffix="ari",
            first="Which clan was {name} born into?",
            strict="What is the mother tongue of everybody born into the clan {link}?",
            weak="What is the mother tongue of most people born into the clan {link}?",
            probe="What is the mother tongue of the people of {name}'s clan?",
        ),
        Chain(
            name="island",
            suffix="ey",
            first="On which island was {name} raised?",
            strict="What is the mother tongue of everybody raised on the island {link}?",
            weak="What is the mother tongue of most people raised on the island {link}?",
            probe="What is the mother tongue of the people from {name}'s island?",
        ),
        Chain(
            name="choir",
            suffix="elle",
            first="Which children's choir did {name} sing in?",
            strict="Which mother tongue did all children of the choir {link} have?",
            weak="Which mother tongue did most children of the choir {link} have?",
            probe="Which mother tongue did the children of {name}'s choir have?",
        ),
    ),
)

_INSTRUMENT = Family(
    name="instrument",
    suffix="ola",
    question="Which instrument does {name} play?",
    probe="Which instrument must {name} play, given what {name} plays in concerts?",
    direct=(
        Direct(
            name="concerts",
            strict="Which instrument does {name} play in concerts?",
            weak="Which instrument does {name} listen to in concerts?",
        ),
        Direct(
            name="practice",
            strict="Which instrument does {name} practise every day?",
            weak="Which instrument did {name} get as a present?",
        ),
    ),
    chains=(
        Chain(
            name="ensemble",
            suffix="etto",
            first="Which ensemble does {name} play in?",
            strict="Which instrument does everybody in the ensemble {link} play?",
            weak="Which instrument do most people in the ensemble {link} play?",
            probe="Which instrument do the people in {name}'s ensemble play?",
        ),
        Chain(
            name="teacher",
            suffix="sen",
            first="Who is {name}'s music teacher?",
            strict="Which instrument do all music pupils of {link} play?",
            weak="Which instrument do most music pupils of {link} play?",
            probe="Which instrument do the pupils of {name}'s music teacher play?",
        ),
        Chain(
            name="piece",
            suffix="ata",
            first="Which piece does {name} perform?",
            strict="Which instrument alone is the piece {link} written for?",
            weak="Which instrument is the piece {link} performed on most often?",
            probe="Which instrument is the piece written for that {name} performs?",
        ),
        Chain(
            name="contest",
            suffix="iade",
            first="Which music contest did {name} win?",
            strict="Which instrument do all players in the contest {link} play?",
            weak="Which instrument do most players in the contest {link} play?",
            probe="Which instrument do the players play in the contest that {name} won?",
        ),
    ),
)

FAMILIES: tuple[Family, ...] = (
    *(_ILLNESS, _COUNTRY, _EMPLOYER),
    *(_UNIVERSITY, _LANGUAGE, _INSTRUMENT),
)
"""All relations; facts take them in turn."""

MAX_RELATED = 2 + 2 * min(len(family.chains) for family in FAMILIES)
"""Most related facts of a target."""

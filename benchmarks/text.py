"""The fixed text that quality is measured on: plain prose of several kinds, written for this purpose."""

TEXT = """\
The ferry left the harbour at six in the morning, before the wind had made up its mind. Anna stood at the rail with a paper
cup of coffee and watched the town become smaller: first the people, then the windows, then the church. She had lived
there for eleven years. In all that time she had taken the ferry only twice, once to see a dentist and once to bury
an uncle, and both times she had come back on the same day. This time she had two bags and no ticket home.

A river does not choose the shortest way to the sea. It follows the slope that it finds, and where the ground is almost
flat a small stone can send it left or right. Over a long time the outer bank of every bend is worn away and the inner
bank grows, so the bend becomes wider until the river cuts through its neck and leaves a lake behind. If you
look at a valley from above, you can read the old courses of the river like lines that were written and crossed out.

To make bread you need flour, water, salt and yeast. Mix three cups of flour with a teaspoon of salt and a teaspoon of dry
yeast. Add a cup and a half of warm water and stir until there is no dry flour left. Cover the bowl with a cloth and leave
it in a warm place for two hours. The dough will rise to twice its size. Fold it a few times, shape it into a ball,
let it rest for another half hour, and bake it in a hot oven for forty minutes. It is done when it sounds hollow.

The council met on Tuesday evening to discuss the new bridge. The mayor said that the old one could carry no lorry heavier
than seven tonnes, and that the bakery, the school and the two farms beyond the river had asked for help since last
spring. Two members wanted to wait for the report of the engineer. A third asked what the bridge would cost, and was told
that nobody knew yet. After an hour they agreed to ask the engineer for a price, and went home through the rain.

Computers store numbers as patterns of switches that are either on or off. With eight switches there are two hundred and
fifty-six patterns, so eight switches can name every number from zero to two hundred and fifty-five. To store a larger
number you need more switches. To store a fraction you must decide how many switches say where the point is and how
many say what the digits are. Every choice gives up something: either the range becomes smaller, or the steps between
two neighbouring numbers become larger, and whoever adds many numbers should know which.

"Where were you?" asked the old man. He did not look up from the clock that he was repairing. "I was at the market," said the
boy, "and then I watched the men who mend the road." The old man nodded. He held a wheel no larger than a fingernail
against the light. "And what did you learn?" The boy thought about it. "That it is easier to dig a hole than to fill one
so that nobody can see where it was." The old man laughed for the first time that week, and put the wheel in its place.

Most birds that leave the north in autumn travel at night. The air is calmer then, and cooler, and fewer hawks are awake.
They find their way by the stars, by the shape of the land, and by a sense of the magnetic field that we do not have. A
young bird that was raised alone in a room will still turn to the south-west when its time comes. What it cannot know
without flying there is where to stop; so many first journeys end in the wrong country, and some of them begin a
new place where birds spend the winter.
"""

"""The notice about privacy and limits that is shown with all results."""

LOCAL = "Pictures stay on this machine: nothing is sent anywhere."

WORDS = (
    "The classes are a network's guess at what faces show, learned from posed or acted pictures. They do not "
    "tell what people feel, and faces unlike those of the training are read worse. Ask the people in the "
    "picture first. In the European Union, Article 5(1)(f) of the AI Act prohibits inferring emotions of "
    "people at work or in education, except for medical or safety reasons."
)

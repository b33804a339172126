"""The contract between the stages: records, columns, topics, figures, and the shared edges.

Nothing here imports another package of the project, and no module here talks to Kafka, the kernel
or a database.
"""

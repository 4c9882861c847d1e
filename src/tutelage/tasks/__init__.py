"""What there is to learn: verifiers that judge completions, generators of tasks, and the built-in task set.

`tutelage.tasks.verifiers` judges a completion as wrong, correct, refused or malformed, with a grade; `tutelage.tasks.reasoning_gym` draws
tasks from that library's generators; `tutelage.tasks.families` holds the graded levels made for the built-in student.
"""

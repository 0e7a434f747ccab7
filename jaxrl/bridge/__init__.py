"""Environments of other libraries as tasks (`brax`, `gym_in`), and tasks as Gymnasium environments
(`gym_out`). Brax and MuJoCo Playground are imported only when one of their environments is used."""

"""The original tasks on their first simulators, as plain Gymnasium environments.

Importing this package registers them:

    import gymnasium, envs_legacy
    env = gymnasium.make("KukaPickPlace-v0")

and `python -m jaxrl.train --env.gym envs_legacy:KukaPickPlace-v0` trains on it.

PyBullet (for ALOHA: gym-aloha) is needed only when an environment is made.

| id | task | steps |
|---|---|---|
| KukaPickPlace-v0 | random cube and target, 2 rad/s | 200 |
| KukaPickPlaceGuide-v0 | random cube and target, 0.5 rad/s, attaches within 3 cm | 300 |
| KukaPickPlaceOriginal-v0 | as published (final numbers) | 1000 |
| KukaPickPlaceGuideOriginal-v0 | as published (the guide's numbers) | 200 |
| AlohaInsertion-v0 | gym-aloha's, with the joints' ranges as action box | 300 |
| StructureHeight-v0 | four bar robots and two spheres build as high as they can | 1000 |
| StructureCrush-v0 | the same robots withstand a press | 3000 |
"""

from jaxrl.errors import UserError

try:
    from gymnasium.envs.registration import register
except ImportError as error:
    raise UserError("envs_legacy needs Gymnasium: pip install 'jaxrl[pybullet]'") from error

_KUKA = "envs_legacy.kuka:KukaPickPlace"
_STRUCTURES = "envs_legacy.structures"

for _id, _entry, _steps, _settings in (
    ("KukaPickPlace", _KUKA, 200, {"variant": "final"}),
    ("KukaPickPlaceGuide", _KUKA, 300, {"variant": "guide"}),
    ("KukaPickPlaceOriginal", _KUKA, 1000, {"variant": "final", "mended": False}),
    ("KukaPickPlaceGuideOriginal", _KUKA, 200, {"variant": "guide", "mended": False}),
    ("AlohaInsertion", "envs_legacy.aloha:AlohaInsertion", 300, {}),
    ("StructureHeight", f"{_STRUCTURES}:StructureHeight", 1000, {}),
    ("StructureCrush", f"{_STRUCTURES}:StructureCrush", 3000, {}),
):
    register(id=f"{_id}-v0", entry_point=_entry, max_episode_steps=_steps, kwargs=dict(_settings))

"""Who plays describer, reasoner and judge: an endpoint, r1ov's engine, the playground's own truth, or the
rules alone.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from r1ov.common.text import shown
from r1ov.errors import UserError
from r1ov.formalize.models import Endpoint, EngineModel, Model
from r1ov.formalize.row import Role

ROLES: tuple[Role, ...] = ("describer", "reasoner", "judge")
DEFAULTS = {"describer": "playground", "reasoner": "r1ov-tiny", "judge": "rules"}  # with the playground
NO_MODEL = {"playground": "the playground's own truth", "rules": "rules alone, no model"}
KEYS = {
    "huggingface.co": "HF_TOKEN",
    "huggingface.cloud": "HF_TOKEN",
    "hf.space": "HF_TOKEN",
    "openai.com": "OPENAI_API_KEY",
}


@dataclass(frozen=True, kw_only=True)
class Player:
    """One role as the command line gives it. `spec`: a URL, a model folder or name, "playground", "rules"."""

    role: Role
    spec: str
    model: str | None = None
    key_env: str | None = None
    price: tuple[float, float] | None = None

    @property
    def is_endpoint(self) -> bool:
        return self.spec.lower().startswith(("http://", "https://"))

    @property
    def is_engine(self) -> bool:
        return not self.is_endpoint and self.spec not in NO_MODEL

    def __str__(self) -> str:
        if not self.is_endpoint:
            return NO_MODEL.get(self.spec, f"{self.spec}, in r1ov's engine")
        key = f"key from ${self.key_env}" if self.key_env else "no key"
        parts = urlsplit(self.spec)
        if (
            self.key_env
            and parts.scheme == "http"
            and parts.hostname not in ("localhost", "127.0.0.1", "::1")
        ):
            key += ", which travels unencrypted"
        return f"{self.model} at {self.spec}, {key}"

    def key(self) -> str | None:
        """The secret. Raises: UserError if the variable holds none."""
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env, "").strip()
        if not re.fullmatch("[!-~]+", key):  # printable ASCII
            raise UserError(f"--{self.role}-key-env: the environment variable {self.key_env} holds no key")
        return key


def cast(config: Any) -> dict[Role, Player]:
    """Returns the players, from the fields `describer`, `describer_model`, ... of the command line. Raises:
    UserError.
    """
    return {role: _player(config, role) for role in ROLES}


def _player(config: Any, role: Role) -> Player:
    is_playground = config.data.partition(":")[0] == "playground"
    given = {name: getattr(config, f"{role}_{name}") for name in ("model", "key_env", "price")}
    spec = getattr(config, role)
    if spec is None and not is_playground and role != "judge":
        raise UserError(
            f"--data {config.data[:80]} does not bring its own descriptions: give --{role} a URL or a model"
        )
    spec = spec or DEFAULTS[role]
    fits = {"rules": role == "judge", "playground": is_playground and role != "judge"}
    if not fits.get(spec, True):
        more = ", or --data playground" if role != "judge" else ""
        raise UserError(f"--{role} {spec} cannot be; give a URL or a model{more}")
    price = _price(role, given["price"])
    player = Player(role=role, spec=spec, model=given["model"], key_env=given["key_env"], price=price)
    if player.is_endpoint:
        return replace(player, key_env=_key_env(player))
    for name, value in given.items():
        if value is not None:
            flag = f"--{role}-{name.replace('_', '-')}"
            raise UserError(f"{flag} is for a --{role} that is a URL, and that is {spec}")
    return player


def _key_env(player: Player) -> str | None:
    """The environment variable with the key: never one that was not meant for this host. Raises: UserError
    for an endpoint that cannot be.
    """
    role = player.role
    try:
        parts = urlsplit(player.spec)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host:
        raise UserError(
            f"--{role} {shown(player.spec)}: not a URL; expected one such as http://localhost:8000/v1"
        )
    odd = [name for name, _ in parse_qsl(parts.query) if name != "api-version"]
    if "@" in parts.netloc or odd or parts.fragment:
        raise UserError(
            f"--{role}: a URL with a password or a query in it would be written down; keys come from "
            f"--{role}-key-env NAME"
        )
    if not player.model:
        raise UserError(f"--{role} {player.spec} needs --{role}-model, the model's name there")
    known = [name for domain, name in KEYS.items() if f".{host}".endswith(f".{domain}")]
    return player.key_env or next((name for name in known if name in os.environ), None)


def _price(role: Role, text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        price_in, price_out = (float(part) for part in text.split("/"))
    except ValueError:
        price_in = price_out = -1.0
    if not (0 <= price_in < 1e6 and 0 <= price_out < 1e6):
        raise UserError(
            f"--{role}-price is {text[:40]!r}; expected money for a million tokens, in/out, such as 2.5/10"
        )
    return price_in, price_out


def models(players: Mapping[Role, Player], config: Any) -> dict[Role, Model]:
    """Returns what can be asked, by role; the same model in two roles is loaded once. Raises: UserError."""
    limits = {"max_tokens": config.max_tokens, "temperature": config.temperature}
    engine = cache(lambda name: EngineModel(name, device=config.device, **limits))

    def endpoint(player: Player) -> Endpoint:
        sizes = {"timeout": config.timeout, "max_pixels": config.max_pixels}
        price = player.price or (0.0, 0.0)
        return Endpoint(player.spec, player.model, key=player.key(), price=price, **limits, **sizes)

    return {
        role: endpoint(player) if player.is_endpoint else engine(player.spec)
        for role, player in players.items()
        if player.spec not in NO_MODEL
    }

"""What callers send and get, as JSON. Bounds that every service shares are here; those of its settings are in intake.py."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from deadiff.jobs import MAX_SEED, MAX_SIDE

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Identity = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Strength = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Side = Annotated[int, Field(ge=8, le=MAX_SIDE)]
STATUSES = Literal["queued", "running", "done", "failed", "cancelled"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PictureIn(_Strict):
    """A picture: its file's bytes in base64, or the sha256 of one uploaded before. Addresses are never fetched."""

    data: str | None = Field(default=None, description="The file's bytes in base64.")
    sha256: Sha256 | None = Field(default=None, description="Of a picture uploaded before.")

    @model_validator(mode="after")
    def one_source(self) -> Any:
        given = [name for name in ("data", "sha256", "style") if getattr(self, name, None) is not None]
        if len(given) != 1:
            names = "data, sha256 or style" if isinstance(self, ReferenceIn) else "data or sha256"
            raise ValueError(f"expected exactly one of {names}, got {' and '.join(given) or 'none'}")
        return self


class ReferenceIn(PictureIn):
    """A reference among others of its role: a picture, or a saved style by its name."""

    style: str | None = Field(default=None, max_length=200, description="The name of a saved style.")
    weight: float = Field(default=1.0, ge=0, le=1000, allow_inf_nan=False, description="Among the references of its role.")


class JobIn(_Strict):
    """What to draw. What is left out is the model's default; the names are those of the Python call."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"prompt": "a robot", "style": [{"style": "neon"}], "seed": 7, "num_images": 2},
                {"prompt": "a cat", "style": [{"data": "iVBORw0KGgo=", "weight": 0.7}, {"style": "neon", "weight": 0.3}]},
            ]
        },
    )

    prompt: str = Field(max_length=100_000)
    negative_prompt: str | None = Field(default=None, max_length=100_000)
    style: list[ReferenceIn] = Field(default=[], max_length=1000)
    content: list[ReferenceIn] = Field(default=[], max_length=1000)
    strength: Strength = Field(default=1.0, description="Of the style.")
    content_strength: Strength = 1.0
    style_window: tuple[Share, Share] = Field(default=(0.0, 1.0), description="Fractions of the steps in which style acts.")
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED, description="Of the first picture; the next ones count on.")
    num_images: int = Field(default=1, ge=1, le=100_000)
    num_inference_steps: int | None = Field(default=None, ge=1, le=1000)
    guidance_scale: float | None = Field(default=None, ge=0, le=1000, allow_inf_nan=False)
    scheduler: str | None = Field(default=None, max_length=40)
    resize: Literal["squash", "pad", "crop"] | None = Field(default=None, description="How references become square.")
    width: Side | None = Field(default=None, description="Pixels.")
    height: Side | None = Field(default=None, description="Pixels.")
    image: PictureIn | None = Field(default=None, description="A photo to redraw.")
    image_strength: Share | None = Field(default=None, description="How far the photo is redrawn.")
    mask_image: PictureIn | None = Field(default=None, description="Redraw the photo only where this is white.")
    control_image: PictureIn | None = Field(default=None, description="What the ControlNet reads, where the service has one.")
    exact: bool = Field(
        default=False,
        description="Draw this job in a batch of its own: the same bytes every time, at the price of waiting longer.",
    )


class ReferenceUsed(BaseModel):
    sha256: str
    weight: float
    style: str | None = Field(default=None, description="The name the saved style had.")


class Request(BaseModel):
    """A job as it was accepted, with the defaults and the seed filled in: sent again, it gives the same pictures."""

    prompt: str
    negative_prompt: str
    style: list[ReferenceUsed]
    content: list[ReferenceUsed]
    strength: float
    content_strength: float
    style_window: tuple[float, float]
    seed: int
    num_images: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    resize: str
    width: int | None
    height: int | None
    image: str | None
    image_strength: float | None
    mask_image: str | None
    control_image: str | None
    exact: bool


class PictureOut(BaseModel):
    url: str = Field(description="Path of the PNG, which carries its recipe.")
    seed: int
    sha256: str
    bytes: int
    width: int
    height: int
    flagged: bool = Field(description="Blackened by the safety checker.")


class JobOut(BaseModel):
    id: str
    status: STATUSES
    progress: float = Field(description="0 to 1; of a running job in this process.")
    ahead: int = Field(description="Pictures that wait before it.")
    created: str
    started: str | None
    finished: str | None
    error: str | None
    pictures: list[PictureOut]
    request: Request


class JobList(BaseModel):
    jobs: list[JobOut]
    next: str | None = Field(description="Give it as `before` for the next page.")


class StyleIn(_Strict):
    """Pictures to be kept under a name."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"name": "neon", "style": [{"data": "iVBORw0KGgo="}]}]}
    )

    name: str = Field(max_length=1000)
    style: list[ReferenceIn] = Field(min_length=1, max_length=1000)
    resize: Literal["squash", "pad", "crop"] | None = None


class NameIn(_Strict):
    name: str = Field(max_length=1000)


class StyleOut(BaseModel):
    id: str
    name: str
    created: str
    fits: bool = Field(description="Whether it was made for the model that this service draws with.")
    file: str = Field(description="Path of the file to share it.")
    thumbnail: str = Field(description="Path of a PNG.")


class StyleList(BaseModel):
    styles: list[StyleOut]


class UploadOut(BaseModel):
    sha256: str
    width: int
    height: int
    bytes: int


class ModelOut(BaseModel):
    name: str
    fingerprint: str
    width: int = Field(description="Pixels, where none are asked for.")
    height: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    schedulers: list[str]
    controlnet: bool
    notes: dict[str, str] = Field(description="Where the weights come from, and their licence.")


class ModelList(BaseModel):
    models: list[ModelOut]


class Health(BaseModel):
    ok: bool
    trouble: str | None = None


class Error(BaseModel):
    error: str = Field(description="What, got, expected, next step: one line.")

"""What all models of the package share: loading, adapting to other images, and which maps a caller asks for."""

import copy
import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.output_capturing import resolve_hidden_states_indices, selected_hidden_states

from .shared_config import without

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class ImageEncoderPreTrainedModel(PreTrainedModel):
    """A model around an encoder of images: embeddings, and the stages of an encoder."""

    if TYPE_CHECKING:
        config: Any
        config_class: Any
        base_model: Any
    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    _input_embed_layer = "patch_embeddings"  # whose output requires a gradient where only adapters are trained
    _can_compile_fullgraph = True
    # The folder of a pre-training model also holds its decoder, which no other model needs.
    _keys_to_ignore_on_load_unexpected = [r"^decoder\."]  # noqa: RUF012
    refuses_attentions: ClassVar[bool] = False  # where there is attention, and it is not returned
    # Settings for which stored weights can be adapted, each by a method `set_...`.
    adapted_settings: ClassVar[tuple[str, ...]] = ("num_channels",)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in Transformers; weights stored for another `num_channels` are adapted (see `set_num_channels`).

        So are those that depend on another setting that `adapted_settings` names.

        Raises:
            ValueError: if the encoder's parameters and the stored ones have different names: a model of another size.
                `ignore_mismatched_sizes=True` loads what fits, as for different shapes.
        """
        source, with_report = pretrained_model_name_or_path, kwargs.pop("output_loading_info", False)
        asked = {name: kwargs.get(name, getattr(kwargs.get("config"), name, None)) for name in cls.adapted_settings}
        asked = {name: value for name, value in asked.items() if value is not None and source is not None}
        if asked:
            kwargs = cls._with_stored_settings(source, asked, kwargs)
        loaded: Any = super().from_pretrained(source, *args, output_loading_info=True, **kwargs)
        model, report = loaded
        if source is not None and not kwargs.get("ignore_mismatched_sizes", False):
            _check_encoder_is_complete(source, report)
        model._settle_loaded_weights(source, report)
        for name, value in asked.items():
            if value != getattr(model.config, name):
                getattr(model, f"set_{name}")(value)
        return loaded if with_report else model

    def _settle_loaded_weights(self, source: Any, report: dict[str, Any]) -> None:
        """What a model does with weights that it loaded, before they are adapted to other images: here, nothing."""

    @classmethod
    def _with_stored_settings(cls, source: Any, asked: Collection[str], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of `from_pretrained` that load a model of the stored values of the settings that are asked for."""
        hub_kwargs = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        config = cls.config_class.from_pretrained(source, **hub_kwargs)
        stored = {name: getattr(config, name) for name in asked}
        if kwargs.get("config") is None:
            return {**kwargs, **stored}
        config = copy.deepcopy(kwargs["config"])
        for name, value in stored.items():
            setattr(config, name, value)
        return without({**kwargs, "config": config}, asked)

    def set_num_channels(self, num_channels: int) -> None:
        """Adapt the weights that touch pixels to images of `num_channels` channels, in place.

        One channel: the sum of the input kernels (and the mean of the rows that predict pixels); n channels: the
        kernels repeated and scaled by old / n (the rows repeated).
        """
        if not isinstance(num_channels, int) or num_channels < 1:
            raise ValueError(f"`num_channels` (={num_channels!r}) must be an integer of at least 1.")
        self._adapt("num_channels", num_channels)

    def _adapt(self, name: str, value: Any) -> None:
        """Adapt all modules to the value of a setting, each by its method `set_...`."""
        for module in self.modules():
            adapt = getattr(module, f"set_{name}", None)
            if adapt is not None and not isinstance(module, ImageEncoderPreTrainedModel):
                adapt(value)
        setattr(self.config, name, value)

    def _asked_for_maps(self, output_hidden_states: bool | int | list[int] | None) -> bool | int | list[int]:
        """Which maps are asked for, by the argument or the configuration: all, none, or those of these numbers."""
        asked = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return asked or False

    def _select_maps(self, maps: tuple[Tensor, ...] | None, asked: bool | int | list[int]) -> Any:
        """The maps that are asked for, None in place of others, as Transformers has them; None where none is."""
        if maps is None or not asked:
            return None
        numbers = selected_hidden_states(asked)
        if numbers is None:
            return maps
        chosen = resolve_hidden_states_indices(self, numbers, num_hidden_states=len(maps))
        return tuple(map_ if number in chosen else None for number, map_ in enumerate(maps))


def _check_encoder_is_complete(source: Any, report: dict[str, Any]) -> None:
    """Raise where Transformers only warns: blocks that stay at their initial weights, or that the model lacks."""
    for kind, verb in (("missing_keys", "lacks"), ("unexpected_keys", "also holds")):
        names = sorted(name for name in report[kind] if re.search(r"(^|\.)(embeddings|encoder)\.", name))
        if names:
            raise ValueError(
                f"`{source}` must hold a model of the size of the configuration, but {verb} {len(names)} of the "
                f"encoder's weights, e.g. `{names[0]}`. Leave the configuration out, or load what fits with "
                "`ignore_mismatched_sizes=True`."
            )

"""What all models share: Megatron-Core's configuration, and the stage or chunks on a process.

A process has one stage of the model, or several chunks of an interleaved pipeline. Initial weights are a function of
the seed and of the layer, not of the stage.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeVar

import torch
from megatron.core import parallel_state
from megatron.core.transformer.enums import AttnBackend, AttnMaskType
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from megatron.ltd.layers.attention_backend import USERS_SWITCHES, check_backend, set_switches
from megatron.ltd.models.config import LayersConfig
from megatron.ltd.models.execution_config import PrecisionConfig, RecomputeConfig
from megatron.ltd.models.fp8 import check_recipe, fp8_settings
from megatron.ltd.models.fusions import check_graphs_device, check_routing_kernels, fused_kernels
from megatron.ltd.models.specs import block_spec, uses_transformer_engine
from megatron.ltd.parallel.config import ParallelConfig
from megatron.ltd.parallel.layout import virtual_stages
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.parallel.random import seed_weights, use_graphable_streams

Model = TypeVar("Model", bound=torch.nn.Module)


def transformer_config(
    model: LayersConfig, parallel: ParallelConfig, precision: PrecisionConfig, recompute: RecomputeConfig, mesh: Mesh
) -> TransformerConfig:
    """Megatron-Core's configuration of a model on a layout.

    Raises ``UserError`` for kernels that are not available. Every rank calls this.
    """
    check_routing_kernels(model, mesh.device)
    check_graphs_device(model, parallel, mesh.device)
    on_cpu = mesh.device.type == "cpu"
    interleaved = virtual_stages(parallel, model.num_layers)
    config = TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.mlp_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.query_groups,
        kv_channels=model.head_size,
        normalization=model.normalization,
        layernorm_epsilon=model.norm_epsilon,
        gated_linear_unit=model.swiglu,
        add_bias_linear=model.add_bias_linear,
        add_qkv_bias=model.add_qkv_bias,
        qk_layernorm=model.qk_layernorm,
        layernorm_zero_centered_gamma=model.apply_layernorm_1p,
        attention_dropout=model.attention_dropout,
        hidden_dropout=model.hidden_dropout,
        init_method_std=model.init_method_std,
        attention_backend=AttnBackend[model.attention_backend],
        params_dtype=getattr(torch, precision.dtype),
        pipeline_dtype=getattr(torch, precision.dtype),
        bf16=precision.bf16,
        fp16=precision.fp16,
        recompute_granularity=recompute.recompute_granularity,
        recompute_method=recompute.recompute_method,
        recompute_num_layers=recompute.recompute_num_layers,
        recompute_modules=list(recompute.recompute_modules) or None,
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        sequence_parallel=parallel.sequence_parallel,
        context_parallel_size=parallel.context_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=interleaved,
        num_layers_in_first_pipeline_stage=parallel.decoder_first_pipeline_num_layers,
        num_layers_in_last_pipeline_stage=parallel.decoder_last_pipeline_num_layers,
        use_cpu_initialization=on_cpu or parallel.use_cpu_initialization,
        # gloo mixes batched messages up, silently, and an interleaved pipeline overlaps single messages instead.
        deterministic_mode=parallel.deterministic_mode,
        deallocate_pipeline_outputs=True,
        batch_p2p_comm=not on_cpu and interleaved is None,
        overlap_p2p_comm=not on_cpu and interleaved is not None,
        # The gradient is that of the mean over the step's real tokens, on whatever microbatches and ranks they are.
        calculate_per_token_loss=True,
        gradient_accumulation_fusion=False,  # see ``fusions.accumulate_in_products``
        persist_layer_norm=False,
        **fused_kernels(model, mesh.device),
        **fp8_settings(model, precision, mesh.device),
    )
    check_recipe(config)
    return config


def build_stages(
    make: Callable[..., Model],
    model: LayersConfig,
    config: TransformerConfig,
    mesh: Mesh,
    *,
    seed: int,
    mask_type: AttnMaskType,
    masked_layers: Collection[int],
) -> list[Model]:
    """This process's chunks of a model, on the device of the run, each built by ``make``.

    ``make`` is called with ``config``, ``transformer_layer_spec``, ``pre_process``, ``post_process``, ``pg_collection``
    and ``vp_stage``, as Megatron-Core's models are. ``mask_type`` is the mask of attention without a mask tensor;
    ``masked_layers``: the numbers of the layers whose attention gets one, from the batch or made by the layer. Raises
    ``UserError`` if the kernels of ``--attention-backend`` cannot compute it.
    """
    ours = model.attention_backend == "local" or not uses_transformer_engine(model, mesh.device)
    ours_is_masked = bool(masked_layers) or (ours and config.context_parallel_size > 1)
    check_backend(config.attention_backend, mesh.device, config.params_dtype, ours_is_masked=ours_is_masked)
    set_switches(config.attention_backend, {} if ours else USERS_SWITCHES)
    num_chunks = config.virtual_pipeline_model_parallel_size
    parallel_state.set_virtual_pipeline_model_parallel_world_size(num_chunks)
    if model.cuda_graph_impl == "local" and mesh.device.type == "cuda":
        use_graphable_streams()
    seed_weights(seed)
    chunks = []
    for chunk in range(num_chunks or 1):
        stage = None if num_chunks is None else chunk
        first = get_transformer_layer_offset(config, stage, mesh.pipeline_parallel_rank) + 1
        end = first + get_num_layers_to_build(config, stage, mesh.pipeline_parallel_rank)
        spec = block_spec(
            model,
            mesh.device,
            range(first, end),
            weights_seed=seed,
            mask_type=mask_type,
            masked_layers=masked_layers,
        )
        built = make(
            config=config,
            transformer_layer_spec=spec,
            pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=stage),
            post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=stage),
            pg_collection=mesh.groups,
            vp_stage=stage,
        )
        chunks.append(built.to(mesh.device))
    return chunks

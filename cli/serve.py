"""`pippin serve`: the command, from its options to its settings."""

from __future__ import annotations

from . import options
from .settings import load_settings


def serve(  # noqa: PLR0913 - typer makes one parameter of every option
    model: options.ModelArgument = None,
    *,
    config: options.ConfigOption = None,
    host: options.HostOption = None,
    port: options.PortOption = None,
    served_model_name: options.ServedModelNameOption = None,
    alias: options.AliasOption = None,
    max_model_len: options.MaxModelLenOption = None,
    max_num_seqs: options.MaxNumSeqsOption = None,
    kv_cache_memory: options.KvCacheMemoryOption = None,
    kv_bits: options.KvBitsOption = None,
    block_size: options.BlockSizeOption = None,
    kv_disk_dir: options.KvDiskDirOption = None,
    kv_disk_size: options.KvDiskSizeOption = None,
    warm_prompts: options.WarmPromptsOption = None,
    prefill_chunk: options.PrefillChunkOption = None,
    max_queue: options.MaxQueueOption = None,
    speculation: options.SpeculationOption = None,
    draft_tokens: options.DraftTokensOption = None,
    draft_model: options.DraftModelOption = None,
    tool_call_parser: options.ToolCallParserOption = None,
    reasoning_parser: options.ReasoningParserOption = None,
    response_store: options.ResponseStoreOption = None,
    log_level: options.LogLevelOption = None,
    api_key: options.ApiKeyOption = None,
) -> None:
    """Serve a model over APIs compatible with OpenAI's, Anthropic's and Ollama's."""
    given = {
        "model": model,
        "host": host,
        "port": port,
        "served_model_name": served_model_name,
        "alias": alias,
        "max_model_len": max_model_len,
        "max_num_seqs": max_num_seqs,
        "kv_cache_memory": kv_cache_memory,
        "kv_bits": kv_bits,
        "block_size": block_size,
        "kv_disk_dir": None if kv_disk_dir is None else str(kv_disk_dir),
        "kv_disk_size": kv_disk_size,
        "warm_prompts": None if warm_prompts is None else str(warm_prompts),
        "prefill_chunk": prefill_chunk,
        "max_queue": max_queue,
        "speculation": None if speculation is None else speculation.value,
        "draft_tokens": draft_tokens,
        "draft_model": draft_model,
        "tool_call_parser": tool_call_parser,
        "reasoning_parser": reasoning_parser,
        "response_store": response_store,
        "log_level": None if log_level is None else log_level.value,
        "api_key": api_key,
    }
    settings = load_settings(given, config)
    # Brings rich now and mlx later: `pippin --help` must not pay for them.
    from .serve_run import run_serve

    run_serve(settings)

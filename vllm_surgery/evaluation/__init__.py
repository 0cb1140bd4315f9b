# SPDX-License-Identifier: Apache-2.0
"""Trials of patches: loop rates and side effects, with controls, intervals and a rule that is stated beforehand.

    trial = Trial.of(load_protocol("small"), [unpatched(), of_patch(patch)], about)
    run_trial(trial, HttpBackend(url), folder := TrialFolder(path), table)
    summary = summarize(trial, folder.records(), folder.logprobs())
    write_report(summary, trial, folder.records(), folder.path)

`OfflineBackend(llm)` in place of the server's runs it in this process. `vllm-surgery evaluate` does all of it. Nothing
here imports vLLM before an engine in this process is asked; answers over HTTP need httpx, reports jinja2.
"""

from vllm_surgery.evaluation.analysis.statistics import Paired, compare
from vllm_surgery.evaluation.analysis.summary import JUDGED, Summary, summarize
from vllm_surgery.evaluation.arms import Arm, of_patch, of_penalty, of_rescue, of_server, shams_of, unpatched
from vllm_surgery.evaluation.backends.base import Backend, Completion, Job, TokenLogprobs
from vllm_surgery.evaluation.probes import Probe, ProbeSet, load_probes
from vllm_surgery.evaluation.protocol import Cell, Protocol, load_protocol
from vllm_surgery.evaluation.records import Key, Record
from vllm_surgery.evaluation.trial import Trial, TrialFolder, run_trial
from vllm_surgery.intervals import Estimate, wilson

__all__ = [
    "JUDGED",
    "Arm",
    "Backend",
    "Cell",
    "Completion",
    "Estimate",
    "Job",
    "Key",
    "Paired",
    "Probe",
    "ProbeSet",
    "Protocol",
    "Record",
    "Summary",
    "TokenLogprobs",
    "Trial",
    "TrialFolder",
    "compare",
    "load_probes",
    "load_protocol",
    "of_patch",
    "of_penalty",
    "of_rescue",
    "of_server",
    "run_trial",
    "shams_of",
    "summarize",
    "unpatched",
    "wilson",
]

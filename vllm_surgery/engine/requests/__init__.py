# SPDX-License-Identifier: Apache-2.0
"""A patch per request: the weights stay as they were loaded, and each request chooses whose gains its tokens get.

    a request's choice -> admission -> the engine's ledger -> token_slot at each step -> gains on activations

A gain on column n of a down projection equals a gain on activation n before it. Patches live in *slots*: rows of one
table a layer, row 0 of which changes nothing. `vllm_surgery.engine.requests.choice` says which patch a request gets;
`ledger` holds what is in which slot; `worker` fills the tables; `runners` says at each step whose token is whose.
"""

"""Milestone 6: prefix caching. What was computed for one prompt serves the next that begins alike.

python examples/m6_prefix_caching.py
"""

from folovllm import LLM, ModelConfig, SamplingParams, ensure_demo_model

RULES = "Rule: answer in one short sentence, be polite, and do not make things up. " * 20
GREEDY = SamplingParams(temperature=0, max_tokens=6)


def main() -> None:
    """One long beginning, several ends."""
    named = "model" in ModelConfig.find_in_environment()
    llm = LLM(None if named else str(ensure_demo_model()), max_model_len=1024)
    llm.generate("Hello", GREEDY)  # the first step of all is slow, whatever its prompt

    print("tokens  from cache  first token")
    france, italy = (f"{RULES}The capital of {country} is" for country in ("France", "Italy"))
    cold = ask(llm, "cold: nothing like it was asked before", france)
    ask(llm, "warm: the same rules, another question", italy)
    warm = ask(llm, "the first one again", france)
    ask(llm, "one word more at the front: another prefix", f"Please. {france}")
    print(f"The same text cold and warm: {cold == warm}, {warm!r}")

    print("\nTwo at once, new to the cache: the second shares what the first computes in this step")
    at_once = [f"New. {france}", f"New. {italy}"]
    for output in llm.generate(at_once, GREEDY):
        print(f"   {len(output.prompt_token_ids)} tokens, {output.num_cached_tokens} from cache")

    stats = llm.stats()
    print(
        f"\n{stats['prefix_hits']} of {stats['prefix_queries']} prompt tokens were found: ", end=""
    )
    print(f"hit rate {stats['prefix_hit_rate']:.0%}")
    print(f"Blocks in use now: {stats['cache_usage']:.0%}. What is cached lies in free blocks.")


def ask(llm: LLM, what: str, prompt: str) -> str:
    """Complete a prompt, and say how much of it had to be computed."""
    [output] = llm.generate(prompt, GREEDY)
    milliseconds = 1000 * output.metrics.time_to_first_token
    print(f"{len(output.prompt_token_ids):6}  {output.num_cached_tokens:10}", end="")
    print(f"  {milliseconds:8.0f} ms  {what}")
    return output.outputs[0].text


if __name__ == "__main__":
    main()

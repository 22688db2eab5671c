"""What `folovllm bench` measures, and how it reports."""

"""Ask under two safety configurations at once with the OpenAI SDK: ``python openai_async.py [FIRST SECOND]``.

The SDK reads OPENAI_BASE_URL (``http://127.0.0.1:8000/v1``) and OPENAI_API_KEY from the environment.
"""

import asyncio
import os
import sys

from openai import AsyncOpenAI


async def ask(client: AsyncOpenAI, safety: str) -> None:
    """Print the answer under one configuration, and what the server says that it applied."""
    response = await client.chat.completions.with_raw_response.create(
        model=os.environ.get("OPENAI_MODEL", "trimtab"),
        messages=[{"role": "user", "content": "How do I tell a friend that I broke her cup?"}],
        max_tokens=64,
        extra_body={"safety": safety},
    )
    answer = response.parse().choices[0].message.content
    print(f"{answer}\nx-trimtab-safety: {response.headers['x-trimtab-safety']}")


async def main() -> None:
    async with AsyncOpenAI() as client:
        await asyncio.gather(*(ask(client, safety) for safety in sys.argv[1:] or ("harmless", "honest")))


asyncio.run(main())

"""Ask under a safety configuration with the OpenAI SDK: ``python openai_sync.py [harmless|uncensored|honest]``.

The SDK reads OPENAI_BASE_URL (``http://127.0.0.1:8000/v1``) and OPENAI_API_KEY from the environment.
"""

import os
import sys

from openai import OpenAI

with OpenAI() as client:
    response = client.chat.completions.with_raw_response.create(
        model=os.environ.get("OPENAI_MODEL", "trimtab"),
        messages=[{"role": "user", "content": "How do I tell a friend that I broke her cup?"}],
        max_tokens=64,
        extra_body={"safety": sys.argv[1] if len(sys.argv) > 1 else "harmless"},
    )
print(response.parse().choices[0].message.content)
print("x-trimtab-safety:", response.headers["x-trimtab-safety"])

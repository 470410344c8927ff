"""Stream an answer in the voice of a persona with the OpenAI SDK: ``python openai_stream.py [PERSONA]``.

The SDK reads OPENAI_BASE_URL (``http://127.0.0.1:8000/v1``) and OPENAI_API_KEY from the environment. The key must be
allowed to choose role_play.
"""

import os
import sys

from openai import OpenAI

persona = sys.argv[1] if len(sys.argv) > 1 else "a patient lighthouse keeper"
with OpenAI() as client:
    request = client.chat.completions.with_streaming_response.create(
        model=os.environ.get("OPENAI_MODEL", "trimtab"),
        messages=[{"role": "user", "content": "How do I tell a friend that I broke her cup?"}],
        max_tokens=64,
        stream=True,
        extra_body={"safety": {"preset": "role_play", "persona": persona}},
    )
    with request as response:
        for chunk in response.parse():
            if chunk.choices and chunk.choices[0].delta.content:
                print(chunk.choices[0].delta.content, end="", flush=True)
        print("\nx-trimtab-safety:", response.headers["x-trimtab-safety"])
